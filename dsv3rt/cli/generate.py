"""`dsv3rt generate`: continue one prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from dsv3rt.chat.report import footer
from dsv3rt.cli.options import Loading, loading_options, sampling_options
from dsv3rt.cli.output import emit_json, json_option
from dsv3rt.cli.stdin import is_piped, piped_text
from dsv3rt.errors import UsageError

if TYPE_CHECKING:
    from dsv3rt.runtime import Stream


@click.command("generate")
@loading_options()
@click.option("-p", "--prompt", help="Text to continue [default: standard input].")
@click.option("--prompt-ids", metavar="1,2,3", help="Token ids to continue, for want of a tokenizer.")
@click.option("--logprobs", type=click.IntRange(min=0), metavar="K", help="With --json: log-probabilities, K best too.")
@click.option("--ignore-eos", is_flag=True, help="Go on past the end of sequence.")
@click.option("--timings", is_flag=True, help="End with a line about speed and memory on stderr.")
@sampling_options
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    loading: Loading,
    prompt: str | None,
    prompt_ids: str | None,
    logprobs: int | None,
    ignore_eos: bool,
    timings: bool,
    sampling: dict[str, Any],
    as_json: bool,
) -> None:
    """Continue a prompt as it is, without a chat template: the text as it comes, or everything about it as JSON.

    \b
    dsv3rt generate FOLDER -p "Once upon a time" -n 100
    echo "Once" | dsv3rt generate FOLDER --temp 0
    dsv3rt generate FOLDER --prompt-ids 1,2,3 -n 8 --json --logprobs 5
    """
    if logprobs is not None and not as_json:
        raise UsageError("--logprobs is reported in JSON only", fix="add --json")
    given = _prompt(prompt, prompt_ids)
    runtime = loading.load()
    stream = runtime.stream(given, logprobs=logprobs, ignore_eos=ignore_eos, **sampling)
    with_text = runtime.has_tokenizer
    interrupted = _show(stream, quiet=as_json, with_text=with_text)
    generation = stream.generation
    if as_json:
        result = generation.as_dict()
        if logprobs is None:
            result.pop("logprobs", None)
        emit_json(result)
    if timings:
        click.echo(footer(generation), err=True)
    if interrupted:
        ctx.exit(130)


def _prompt(text: str | None, ids: str | None) -> str | list[int]:
    """What to continue. Raises UsageError."""
    if text is not None and ids is not None:
        raise UsageError("--prompt and --prompt-ids exclude each other", fix="give one")
    if ids is not None:
        try:
            return [int(part) for part in ids.replace(",", " ").split()]
        except ValueError:
            raise UsageError(f"--prompt-ids {ids!r} is not a list of numbers", fix="write 1,2,3") from None
    if text is not None:
        return text
    if not is_piped():
        raise UsageError("no prompt is given", fix='give -p "TEXT", --prompt-ids 1,2,3 or text on standard input')
    return piped_text()


def _show(stream: Stream, *, quiet: bool, with_text: bool) -> bool:
    """Print the answer as it comes; whether Ctrl-C ended it. Without a tokenizer, token ids are what is printed."""
    first = True
    try:
        for chunk in stream:
            if quiet or not (chunk.text or chunk.token_ids):
                continue
            if with_text:
                click.echo(chunk.text, nl=False)
            elif chunk.token_ids:
                click.echo(("" if first else ",") + ",".join(map(str, chunk.token_ids)), nl=False)
            first = False
    except KeyboardInterrupt:
        stream.close()
        return True
    finally:
        if not quiet and not first:
            click.echo()
    return False

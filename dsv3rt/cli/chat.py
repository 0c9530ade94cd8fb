"""`dsv3rt chat`: talk to a model, or ask it one thing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsv3rt.cli.options import BUNDLED, Loading, Speaking, loading_options, sampling_options, speaking_options
from dsv3rt.cli.output import emit_json, json_option
from dsv3rt.cli.stdin import is_piped, piped_text
from dsv3rt.errors import UsageError

if TYPE_CHECKING:
    from dsv3rt.chat.settings import ChatSettings
    from dsv3rt.chat.terminal import Terminal
    from dsv3rt.runtime import Runtime


@click.command("chat")
@loading_options(default=BUNDLED)
@click.option("-p", "--prompt", help="Ask this one thing and leave; without it, piped input is the question.")
@click.option("-s", "--system", help="System prompt.")
@click.option("--system-file", type=click.Path(path_type=Path), help="The same, from a file.")
@sampling_options
@speaking_options
@click.option("--hide-reasoning", is_flag=True, help="Do not show its thoughts.")
@click.option("--timings", is_flag=True, help="All figures under an answer, not just a line.")
@json_option
def command(
    loading: Loading,
    sampling: dict[str, Any],
    speaking: Speaking,
    prompt: str | None,
    system: str | None,
    system_file: Path | None,
    hide_reasoning: bool,
    timings: bool,
    as_json: bool,
) -> None:
    """Talk to CHECKPOINT: a folder, or org/name of a downloaded one. Without it, to the bundled model.

    In the chat, /help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.

    \b
    dsv3rt chat
    dsv3rt chat /data/moonlight --temp 0.6 -s "Answer in French."
    dsv3rt chat -p "What is a mixture of experts?"
    git diff | dsv3rt chat /data/v2-lite -s "Review this change."
    """
    from dsv3rt.chat.settings import ChatSettings

    system = _system(system, system_file)
    single = prompt is not None or as_json or sys.stdin is None or is_piped()
    question = _question(prompt) if single else None
    runtime = _load(loading, speaking.template())
    settings = ChatSettings(sampling, speaking.reasoning, hide_reasoning, timings, dict(speaking.chat_template_kwargs))
    if question is None:
        _converse(_terminal(runtime, settings, system, interactive=True))
    elif as_json:
        _answer_json(runtime, settings, system, question)
    else:
        _answer(runtime, settings, system, question)


def _load(loading: Loading, template: str | None) -> Runtime:
    """The runtime, ready to speak. What it cannot do without is looked for before gigabytes are read."""
    from dsv3rt.cli.interrupt import ctrl_c_leaves

    with ctrl_c_leaves():
        from dsv3rt.chat.template import load_chat_format
        from dsv3rt.plugin_manager import discover

        plugins = discover(loading.plugin)
    offers = [(offer.name, offer.builder) for offer in plugins.offers["chat_format"]]
    load_chat_format(loading.folder(), offers, template=template)
    runtime = loading.load(template, plugins)
    runtime.tokenizer  # noqa: B018 (read now, so that the first answer does not wait for it)
    return runtime


def _system(text: str | None, file: Path | None) -> str | None:
    if file is None:
        return text
    if text is not None:
        raise UsageError("--system and --system-file exclude each other", fix="give one")
    try:
        return file.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file}: {error}", fix="give a text file") from None


def _question(prompt: str | None) -> str:
    """What is asked once: -p, or all of stdin."""
    if prompt is None and not is_piped():
        raise UsageError("no question is given, and nobody is there to ask one", fix="give -p TEXT or pipe it in")
    text = piped_text() if prompt is None else prompt
    if not text.strip():
        raise UsageError("the question is empty", fix="give -p TEXT or pipe it in")
    return text


def _terminal(runtime: Runtime, settings: ChatSettings, system: str | None, *, interactive: bool) -> Terminal:
    from dsv3rt.chat.terminal import Terminal

    plan = runtime.plan.as_dict()
    facts = [("family", runtime.config.family.title)]
    for slot in ("attention", "routing", "quantization", "head"):
        filled = plan.get(slot)
        facts.append((slot, f"{filled['name']}, from {filled['owner']}" if filled else "none"))
    facts += [("device", f"{plan['device']}, {plan['dtype']}"), ("context", f"{runtime.plan.max_context} tokens")]
    return Terminal(
        runtime,
        settings,
        model=str(runtime.folder),
        facts=facts,
        context=runtime.plan.max_context,
        system=system,
        check_sampling=lambda sampling: _check(runtime, sampling),
        interactive=interactive,
        show_footer=sys.stderr.isatty(),
    )


def _check(runtime: Runtime, sampling: dict[str, Any]) -> None:
    others = ("max_tokens", "stop", "draft_tokens")
    runtime.sampling_defaults.override(**{name: value for name, value in sampling.items() if name not in others})


def _converse(terminal: Terminal) -> None:
    from dsv3rt.chat.keyboard import keyboard
    from dsv3rt.chat.terminal import COMMANDS

    terminal.err.print(f"{Path(terminal.model).name}: /help lists the commands, Ctrl-D leaves", style="dim")
    terminal.run(keyboard(COMMANDS))


def _answer(runtime: Runtime, settings: ChatSettings, system: str | None, question: str) -> None:
    if not sys.stdout.isatty():
        settings.hide_reasoning = True  # a file or a pipe gets the answer alone
    terminal = _terminal(runtime, settings, system, interactive=False)
    terminal.ask(question)
    if terminal.interrupted:
        raise KeyboardInterrupt


def _answer_json(runtime: Runtime, settings: ChatSettings, system: str | None, question: str) -> None:
    from dsv3rt.chat.conversation import Conversation

    conversation = Conversation(system)
    conversation.say(question)
    generation = runtime.chat(conversation.all_messages(), template_kwargs=settings.variables(), **settings.sampling)
    emit_json({"model": str(runtime.folder), **generation.as_dict()})

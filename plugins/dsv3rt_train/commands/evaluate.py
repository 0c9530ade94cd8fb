"""`dsv3rt eval`: what a checkpoint is worth, and what a plan costs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsv3rt.cli.options import BUNDLED, Loading, loading_options
from dsv3rt.cli.output import emit_json, json_option
from dsv3rt.errors import UsageError

if TYPE_CHECKING:
    from dsv3rt_train.eval.measures import Tick

_SLOTS = ("attention", "routing", "quantization", "lora", "head", "dtype", "cache_dtype")


@click.command("eval")
@loading_options(default=BUNDLED)
@click.option("-d", "--data", multiple=True, required=True, type=click.Path(path_type=Path), help="File; repeatable.")
@click.option(
    "--task",
    type=click.Choice(["perplexity", "choices", "exact", "samples", "delta"]),
    default="perplexity",
    show_default=True,
    help="What to measure.",
)
@click.option("--against", multiple=True, metavar="SLOT=NAME[:K=V]", help="For delta: what the other plan changes.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many items.")
@click.option("--window", type=click.IntRange(min=8), default=512, show_default=True, help="Tokens scored together.")
@click.option("--seed", default=0, show_default=True, help="Of samples.")
@click.option("-n", "--max-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Of an answer.")
@json_option
def command(
    loading: Loading,
    data: tuple[Path, ...],
    task: str,
    against: tuple[str, ...],
    limit: int | None,
    window: int,
    seed: int,
    max_tokens: int,
    as_json: bool,
) -> None:
    """Measure CHECKPOINT on local files.

    perplexity: bits per byte of .txt or {"text"}. choices: HellaSwag, ARC, MMLU items by log-likelihood. exact: GSM8K,
    question/answer or {"messages"} items by greedy answers; the first wrong ones are printed. samples: answers drawn
    to be read. delta: KL and top-1 agreement between two plans on a text.

    \b
    dsv3rt eval /data/model -d wiki.txt
    dsv3rt eval /data/model -d test.jsonl --task choices --limit 200 --json
    dsv3rt eval /data/model -d wiki.txt --task delta --against cache_dtype=bfloat16 --against routing=my_router
    """
    from dsv3rt_train.data.documents import read_records
    from dsv3rt_train.eval import measures
    from dsv3rt_train.eval.records import read_choices, read_questions

    changes = _changes(against, task)
    texts: Iterator[str] = (str(r.get("text") or "") for r in itertools.islice(read_records(data), limit))
    runtime = loading.load()
    window = min(window, runtime.plan.max_context)
    with _Bar(as_json) as tick:
        if task == "perplexity":
            facts = measures.bits_per_byte(runtime, texts, window=window, tick=tick)
        elif task == "choices":
            facts = measures.choices(runtime, itertools.islice(read_choices(data), limit), tick=tick)
        elif task == "exact":
            questions = itertools.islice(read_questions(data), limit)
            facts = measures.exact_match(runtime, questions, max_tokens=max_tokens, tick=tick)
        elif task == "samples":
            questions = itertools.islice(read_questions(data), limit)
            facts = measures.samples(runtime, questions, max_tokens=max_tokens, seed=seed, tick=tick)
        else:
            other = dataclasses.replace(loading, **changes).load()
            facts = measures.compare(runtime, other, texts, window=window, tick=tick)
            facts["against"] = changes
    facts = {"task": task, "checkpoint": loading.checkpoint, **facts, "plan": runtime.plan.as_dict()}
    if as_json:
        emit_json(facts)
        return
    for key, value in facts.items():
        if isinstance(value, float):
            click.echo(f"{key}: {value:.5g}")
        elif isinstance(value, int):
            click.echo(f"{key}: {value}")
    for answer in facts.get("samples", facts.get("wrong", [])):
        click.echo()
        for key, text in answer.items():
            click.echo(f"{key + ':':<8}{text}")


def _changes(against: tuple[str, ...], task: str) -> dict[str, Any]:
    """--against as fields of `Loading`. Raises UsageError."""
    if bool(against) != (task == "delta"):
        raise UsageError("--task delta and --against belong together", fix="e.g. --task delta --against dtype=bfloat16")
    changes: dict[str, Any] = {}
    for text in against:
        slot, _, name = text.partition("=")
        slot = slot.replace("-", "_")
        if slot not in _SLOTS or not name:
            raise UsageError(f"--against {text!r} changes no slot", fix=f"write SLOT=NAME; known: {', '.join(_SLOTS)}")
        changes[slot] = name
    return changes


class _Bar:
    """A count of items on stderr, where a person is looking."""

    def __init__(self, silent: bool) -> None:
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TextColumn

        console = Console(stderr=True, quiet=silent)
        self._bar = Progress(TextColumn("items"), MofNCompleteColumn(), console=console, transient=True)
        self._bar.disable = silent or not console.is_terminal

    def __enter__(self) -> Tick:
        task = self._bar.add_task("items", total=None)
        self._bar.start()
        return lambda: self._bar.advance(task)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

"""`dsv3rt train`: train, fine-tune with LoRA, export; data and recipes for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsv3rt.cli.output import emit_json, json_option

if TYPE_CHECKING:
    from dsv3rt_train.loop import Metrics

_PATH = click.Path(path_type=Path)


@click.group("train")
def command() -> None:
    """Train a model of the family, here: from scratch, or on from a checkpoint.

    \b
    dsv3rt train recipe bundled /tmp/mini                     data, tokenizer and config of the bundled checkpoint
    dsv3rt train run /tmp/run --config /tmp/mini/config.json --tokenizer /tmp/mini -d /tmp/mini/train.jsonl --steps 4000
    dsv3rt train export /tmp/run /tmp/checkpoint --fp8        the official layout
    """


@command.command("recipe")
@click.argument("name", type=click.Choice(["bundled"]))
@click.argument("out", type=_PATH)
@click.option(
    "--wordnet", type=_PATH, default="/usr/share/wordnet", show_default=True, help="WordNet's database files."
)
@click.option(
    "--conversations", type=click.IntRange(min=100), default=400_000, show_default=True, help="How many to make."
)
@click.option("--vocab-size", type=click.IntRange(min=300), default=2048, show_default=True, help="Of the tokenizer.")
@click.option("--seed", default=1, show_default=True, help="Equal seeds make equal files.")
@json_option
def recipe(name: str, out: Path, wordnet: Path, conversations: int, vocab_size: int, seed: int, as_json: bool) -> None:
    """Make what the bundled checkpoint is trained from, in OUT.

    Needs WordNet's database (Debian: wordnet-base) and the package chatterbot-corpus; the rest is generated.

    \b
    dsv3rt train recipe bundled /tmp/mini --conversations 80000 --seed 12
    """
    from dsv3rt_train.recipe import make_bundled

    facts = make_bundled(out, wordnet, conversations=conversations, vocab_size=vocab_size, seed=seed)
    _report(facts, f"{facts['conversations']} conversations, {facts['vocab_size']} tokens in {out}", as_json)


@command.command("tokenizer")
@click.argument("out", type=_PATH)
@click.option("-d", "--data", multiple=True, required=True, type=_PATH, help="A .jsonl or .txt file; repeatable.")
@click.option("--vocab-size", type=click.IntRange(min=300), default=4096, show_default=True, help="How many tokens.")
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    help="Context length to write into its config.",
)
@json_option
def tokenizer(out: Path, data: tuple[Path, ...], vocab_size: int, max_length: int, as_json: bool) -> None:
    """Train a sentencepiece tokenizer on text or conversations.

    It gets DeepSeek's control tokens and chat template.

    \b
    dsv3rt train tokenizer /tmp/tokenizer -d chats.jsonl -d book.txt --vocab-size 8192
    """
    from dsv3rt_train.data import tokenizer as making
    from dsv3rt_train.data.documents import read_records, texts_of

    processor = making.train(texts_of(read_records(data)), vocab_size)
    making.save(processor, out, max_length=max_length)
    _report({"folder": str(out), "vocab_size": processor.get_piece_size()}, f"tokenizer in {out}", as_json)


@command.command("run")
@click.argument("out", type=_PATH)
@click.option("-d", "--data", multiple=True, required=True, type=_PATH, help="A .jsonl or .txt file; repeatable.")
@click.option("--config", type=_PATH, help="config.json of a new model.")
@click.option("--tokenizer", type=_PATH, help="Folder of its tokenizer [default: that of --from].")
@click.option("--from", "base", type=_PATH, help="A checkpoint to go on from, instead of --config.")
@click.option("--steps", type=click.IntRange(min=1), required=True, help="Optimizer steps in all.")
@click.option("--warmup", default=40, show_default=True, help="Steps of warm-up.")
@click.option("--decay-share", default=0.3, show_default=True, help="Last part of the steps, where the rate falls.")
@click.option("--lr", default=5e-3, show_default=True, help="Highest learning rate.")
@click.option(
    "--optimizer",
    type=click.Choice(["muon", "adamw"]),
    default="muon",
    show_default=True,
    help="Muon: for the matrices inside layers.",
)
@click.option("--weight-decay", default=0.1, show_default=True, help="Of matrices and embeddings, times the rate.")
@click.option("--clip", default=1.0, show_default=True, help="Greatest norm of the gradient.")
@click.option("--tokens", default=3072, show_default=True, help="Tokens of a micro-batch.")
@click.option("--micro-batches", default=2, show_default=True, help="Micro-batches whose gradients make one step.")
@click.option(
    "--max-length",
    type=click.IntRange(min=2),
    default=320,
    show_default=True,
    help="Longer documents are cut, in tokens.",
)
@click.option("--mtp-weight", default=0.3, show_default=True, help="Of the prediction module's loss.")
@click.option("--mtp-weight-late", default=0.1, show_default=True, help="The same, where the learning rate falls.")
@click.option("--mtp-share", default=1.0, show_default=True, help="Share of documents that train the module.")
@click.option(
    "--drafts",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Train the prediction module alone, applied N times in a row, towards the model's own choices.",
)
@click.option("--bias-speed", default=0.001, show_default=True, help="Of balancing; 0 turns it off.")
@click.option(
    "--balance-weight", default=0.0, show_default=True, help="Of the loss against imbalance within a sequence."
)
@click.option(
    "--numerics",
    type=click.Choice(["float32", "bf16", "fp8"]),
    default="float32",
    show_default=True,
    help="How products round.",
)
@click.option(
    "--compile",
    is_flag=True,
    help="torch.compile the blocks: a minute of compiling, then steps at most 8 % quicker (CPU).",
)
@click.option("--attention", metavar="NAME[:K=V,...]", help="Plugin for the attention slot.")
@click.option("--routing", metavar="NAME[:K=V,...]", help="Plugin for the routing slot.")
@click.option("--plugin", multiple=True, type=click.Path(), help="A plugin from a single file; repeatable.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("-t", "--threads", type=click.IntRange(min=1), help="CPU threads [default: one a core].")
@click.option("--lora", type=click.IntRange(min=1), metavar="RANK", help="Train adapters of this rank over --from.")
@click.option("--lora-alpha", default=16.0, show_default=True, help="The adapters' scale is this over their rank.")
@click.option("--lora-targets", default="", metavar="NAME,NAME", help="Adapted matrices [default: attention's].")
@click.option("--seed", default=0, show_default=True, help="Of first weights and of the order of documents.")
@click.option("--stop-at", type=click.IntRange(min=1), help="Stop after this step, to go on later.")
@click.option(
    "--save-every",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="Steps between saves to resume from.",
)
@json_option
def run(out: Path, data: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Train a model, or adapters for one, in the folder OUT.

    Started again with the same arguments, it goes on where it was stopped, exactly.

    Data: .jsonl with {"messages": [...]} (only the assistant's words are learnt) or {"text": ...}, or .txt. OUT gets
    metrics.jsonl, curves.png, resume.pt and, at the end, checkpoint/ in the official layout.

    \b
    dsv3rt train run /tmp/new --config config.json --tokenizer /tmp/tokenizer -d book.txt --steps 2000
    dsv3rt train run /tmp/on --from /data/model -d chats.jsonl --steps 200 --lr 1e-3 --bias-speed 0
    dsv3rt train run /tmp/lora --from /data/model -d chats.jsonl --steps 200 --lora 8
    """
    from dsv3rt_train.run import Plan, train

    numerics = options.pop("numerics")
    plan = Plan(out=out, data=data, bf16=numerics == "bf16", fp8=numerics == "fp8", **options)
    facts = train(plan, report=None if as_json else _Progress(plan.steps))
    _report(facts, f"loss {facts['loss']:.4f}; checkpoint in {facts['checkpoint']}", as_json)


@command.command("export")
@click.argument("run_folder", metavar="RUN", type=_PATH)
@click.argument("out", type=_PATH)
@click.option("--fp8", is_flag=True, help="Block-FP8 matrices, as official checkpoints have them.")
@json_option
def export(run_folder: Path, out: Path, fp8: bool, as_json: bool) -> None:
    """Write the newest save of RUN as a checkpoint.

    Also while it is still running.

    \b
    dsv3rt train export /tmp/run /tmp/checkpoint --fp8 && dsv3rt chat /tmp/checkpoint
    """
    from dsv3rt_train.run import export_run

    facts = export_run(run_folder, out, fp8=fp8)
    _report(facts, f"step {facts['step']}: {facts['bytes']} bytes of weights in {out}", as_json)


@command.command("merge")
@click.argument("base", type=_PATH)
@click.argument("adapter", type=_PATH)
@click.argument("out", type=_PATH)
@click.option("--fp8", is_flag=True, help="Block-FP8 matrices, as official checkpoints have them.")
@json_option
def merge(base: Path, adapter: Path, out: Path, fp8: bool, as_json: bool) -> None:
    """Add a LoRA ADAPTER to the matrices of BASE, as a checkpoint.

    The adapter is a folder in PEFT's format.

    \b
    dsv3rt train merge /data/model /tmp/lora/adapter /tmp/merged --fp8
    """
    from dsv3rt_train.run import merge_adapter

    facts = merge_adapter(base, adapter, out, fp8=fp8)
    _report(facts, f"{facts['merged']} matrices merged; {facts['bytes']} bytes of weights in {out}", as_json)


@command.command("grow")
@click.argument("base", type=_PATH)
@click.argument("out", type=_PATH)
@click.option("--layers", type=click.IntRange(min=2), required=True, help="How many it shall have.")
@json_option
def grow(base: Path, out: Path, layers: int, as_json: bool) -> None:
    """Add layers to BASE that do nothing yet.

    OUT is to be trained on.

    \b
    dsv3rt train grow /data/model /tmp/grown --layers 8
    dsv3rt train run /tmp/run --from /tmp/grown -d chats.jsonl --steps 500
    """
    from dsv3rt_train.run import grow_checkpoint

    facts = grow_checkpoint(base, out, layers=layers)
    _report(facts, f"{layers} layers, {facts['parameters']} parameters in {out}", as_json)


@command.command("plot")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=_PATH)
@click.option("--out", type=_PATH, help="PNG file [default: curves.png, or balance.png, in the first RUN].")
@json_option
def plot(runs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Draw the curves of a run, or the balance of several.

    Of one RUN: loss, load of experts, agreement of drafts. Of several: the load of the busiest expert in each.

    \b
    dsv3rt train plot /tmp/run
    dsv3rt train plot "/tmp/with bias updates" "/tmp/without" --out balance.png
    """
    from dsv3rt_train import plots

    path = plots.draw(runs[0], out) if len(runs) == 1 else plots.draw_balance(runs, out or runs[0] / "balance.png")
    _report({"png": str(path)}, str(path), as_json)


class _Progress:
    """One bar on stderr; a line every hundred steps where stderr is no terminal."""

    def __init__(self, steps: int) -> None:
        from rich.console import Console
        from rich.progress import Progress, TextColumn

        self._console = Console(stderr=True)
        self._bar = Progress(*Progress.get_default_columns(), TextColumn("{task.fields[words]}"), console=self._console)
        self._task = self._bar.add_task("training", total=steps, words="")

    def __call__(self, metrics: Metrics) -> None:
        step = int(metrics["step"]) + 1
        words = f"loss {metrics['loss']:.3f}  {metrics['tokens'] / max(metrics['seconds'], 1e-9):.0f} tokens/s"
        if self._console.is_terminal:
            self._bar.start()
            self._bar.update(self._task, completed=step, words=words)
            if step == self._bar.tasks[0].total:
                self._bar.stop()
        elif step % 100 == 0:
            click.echo(f"step {step}: {words}", err=True)


def _report(facts: dict[str, Any], words: str, as_json: bool) -> None:
    if as_json:
        emit_json(facts)
    else:
        click.echo(words, err=True)

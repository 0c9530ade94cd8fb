"""The flags that commands share, each defined once, handed to the command in three bundles.

`@loading_options` gives `loading: Loading` (the checkpoint and how to load it), `@sampling_options` gives
`sampling: dict` (what `Runtime.stream` takes), `@speaking_options` gives `speaking: Speaking` (chat templates and
whether to think). Nothing heavy is imported until a bundle is used.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from dsv3rt.errors import UsageError

if TYPE_CHECKING:
    from dsv3rt.plugin_manager import Plugins
    from dsv3rt.runtime import Runtime

Command = TypeVar("Command", bound=Callable[..., Any])
Reasoning = Literal["on", "off", "auto"]

BUNDLED = "bundled"
"""Stands for the checkpoint that comes with dsv3rt."""


@dataclass(frozen=True)
class Loading:
    """Which checkpoint, and how to load it."""

    checkpoint: str
    attention: str | None = None
    routing: str | None = None
    quantization: str | None = None
    lora: str | None = None
    head: str | None = None
    plugin: tuple[str, ...] = ()
    device: str | None = None
    dtype: str | None = None
    cache_dtype: str | None = None
    compile: str = "auto"
    ctx_size: int | None = None
    threads: int | None = None

    def folder(self) -> Path:
        """Where the checkpoint lies. Raises CheckpointError."""
        if self.checkpoint == BUNDLED:
            from dsv3rt.bundled import bundled_checkpoint

            return bundled_checkpoint()
        from dsv3rt.weights.locate import locate

        return locate(self.checkpoint)

    def storage(self) -> str | None:
        """What fills the quantization slot, an adapter included. Raises UsageError."""
        if self.lora is None:
            return self.quantization
        if self.quantization is not None and ":" in self.quantization:
            raise UsageError("--lora cannot be joined with a --quantization that has options", fix="give one of them")
        base = f",base={self.quantization}" if self.quantization else ""
        return f"lora:dir={self.lora}{base}"

    def load(self, chat_template: str | None = None, plugins: Plugins | None = None) -> Runtime:
        """Load it, with a progress bar where stderr is a terminal. Raises UserError.

        `plugins` are those that `--plugin` and the installation give, where the caller has looked already.
        """
        from dsv3rt.cli.interrupt import ctrl_c_leaves
        from dsv3rt.cli.output import progress_bar

        folder = self.folder()
        with ctrl_c_leaves(), progress_bar() as progress:
            import torch

            from dsv3rt.runtime import load

            if self.threads is not None:
                torch.set_num_threads(self.threads)
            return load(
                folder,
                attention=self.attention,
                routing=self.routing,
                quantization=self.storage(),
                head=self.head,
                plugins=self.plugin if plugins is None else plugins,
                device=self.device,
                dtype=self.dtype,
                cache_dtype=self.cache_dtype,
                compile=self.compile,
                max_context=self.ctx_size,
                chat_template=chat_template,
                progress=progress,
            )


@dataclass(frozen=True)
class Speaking:
    """How the conversation is written out for the model."""

    chat_template: str | None = None
    chat_template_file: Path | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    reasoning: Reasoning = "auto"

    def template(self) -> str | None:
        """What stands in for the checkpoint's own template: a name or a source. Raises UserError."""
        if self.chat_template_file is None:
            return self.chat_template
        if self.chat_template is not None:
            raise UsageError("--chat-template and --chat-template-file exclude each other", fix="give one")
        from dsv3rt.chat.template import read_template

        source = read_template(self.chat_template_file)
        return source if "{" in source else f"{{# #}}{source}"  # a text without any tag would pass for a name


def loading_options(*, default: str | None = None) -> Callable[[Command], Command]:
    """The checkpoint (argument or -m) and every flag of `Loading`; `default` is what no argument means."""
    flags = [
        click.argument("checkpoint", required=False),
        click.option("-m", "--model", help="The checkpoint, as another way to say it."),
        click.option("--attention", metavar="NAME[:K=V,...]", help="Plugin for the attention slot."),
        click.option("--routing", metavar="NAME[:K=V,...]", help="Plugin for the routing slot."),
        click.option("--quantization", metavar="NAME[:K=V,...]", help="Plugin for storage format and kernels."),
        click.option("--lora", metavar="DIR", help="A LoRA adapter in PEFT's format, added to the matrices."),
        click.option("--head", metavar="NAME[:K=V,...]", help="Plugin that drafts tokens; `none` for no drafting."),
        click.option("--plugin", multiple=True, type=click.Path(), help="A plugin from a single file; repeatable."),
        click.option("--device", help="cpu or cuda [default: cuda where there is one]."),
        click.option("--dtype", help="Of the computation: float32, bfloat16, float16."),
        click.option(
            "--cache-dtype", help="Of the cache [default: bfloat16, or float32 as --dtype or the weights are]."
        ),
        click.option(
            "--compile",
            type=click.Choice(["auto", "full", "block", "off", "wait"]),
            default="auto",
            show_default=True,
            help="What torch.compile compiles, and whether to wait for it.",
        ),
        click.option("-c", "--ctx-size", type=click.IntRange(min=1), help="Context in tokens [default: the model's]."),
        click.option("-t", "--threads", type=click.IntRange(min=1), help="CPU threads [default: one a core]."),
    ]

    def gather(given: dict[str, Any]) -> Loading:
        checkpoint, model = given.pop("checkpoint"), given.pop("model")
        if checkpoint is not None and model is not None and checkpoint != model:
            raise UsageError(f"two checkpoints are given, {checkpoint} and {model}", fix="give one")
        chosen = checkpoint or model or default
        if chosen is None:
            raise UsageError("no checkpoint is given", fix="give a folder, or org/name of a downloaded one")
        return Loading(chosen, **given)

    names = ["checkpoint", "model", *(item.name for item in fields(Loading) if item.name != "checkpoint")]
    return _bundle("loading", flags, names, gather)


class _DraftTokens(click.ParamType["int | str"]):
    """A number or auto."""

    name = "count"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        text = str(value)
        if text != "auto" and not text.isdecimal():
            self.fail(f"{text!r} is neither a number nor auto", param, ctx)
        return text if text == "auto" else int(text)


draft_tokens_option = click.option(
    "--draft-tokens",
    type=_DraftTokens(),
    metavar="N|auto|0",
    help="Tokens the head drafts in a step; 0 for none [default: auto].",
)


def sampling_options(command: Command) -> Command:
    """Everything about choosing tokens and when to end; only what was given ends up in `sampling`."""
    flags = [
        click.option("--temp", "--temperature", "temperature", type=float, help="0 is greedy [default: the model's]."),
        click.option("--top-k", type=int, help="Only the K likeliest tokens; 0 for all."),
        click.option("--top-p", type=float, help="Only the likeliest tokens that together reach this probability."),
        click.option("--min-p", type=float, help="Only tokens at least this likely, relative to the likeliest."),
        click.option("--repeat-penalty", "--repetition-penalty", "repetition_penalty", type=float, help="1 is none."),
        click.option("--seed", type=int, help="The same seed gives the same text."),
        click.option("-n", "--max-tokens", "--predict", "max_tokens", type=click.IntRange(min=0), help="Length limit."),
        click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; repeatable."),
        draft_tokens_option,
    ]
    names = ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "max_tokens", "stop"]
    names.append("draft_tokens")

    def gather(given: dict[str, Any]) -> dict[str, Any]:
        from dsv3rt.generate.sampling import SamplingParams

        kept = {name: value for name, value in given.items() if value not in (None, ())}
        others = ("max_tokens", "stop", "draft_tokens")
        SamplingParams().override(**{name: value for name, value in kept.items() if name not in others})
        return kept

    return _bundle("sampling", flags, names, gather)(command)


def speaking_options(command: Command) -> Command:
    """Chat templates, and whether to think."""
    flags = [
        click.option("--chat-template", metavar="NAME|SOURCE", help="Another template than the checkpoint's."),
        click.option("--chat-template-file", type=click.Path(path_type=Path), help="The same, from a file."),
        click.option("--chat-template-kwargs", metavar="JSON", help='Variables for it: {"thinking": true}'),
        click.option(
            "--reasoning",
            type=click.Choice(["on", "off", "auto"]),
            default="auto",
            show_default=True,
            help="Whether the model is to think first.",
        ),
    ]

    def gather(given: dict[str, Any]) -> Speaking:
        given["chat_template_kwargs"] = _json_object(given["chat_template_kwargs"])
        return Speaking(**given)

    return _bundle("speaking", flags, [item.name for item in fields(Speaking)], gather)(command)


def _bundle(
    name: str, flags: list[Callable[..., Any]], names: list[str], gather: Callable[[dict[str, Any]], Any]
) -> Callable[[Command], Command]:
    """Add `flags` to a command, which receives what `gather` makes of them as `name`."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapped(**kwargs: Any) -> Any:
            given = {key: kwargs.pop(key) for key in names}
            return command(**kwargs, **{name: gather(given)})

        decorated: Any = wrapped
        for flag in reversed(flags):
            decorated = flag(decorated)
        result: Command = decorated
        return result

    return decorate


def _json_object(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(
            f"--chat-template-kwargs is no JSON: {error}", fix="write it like '{\"thinking\": true}'"
        ) from None
    if not isinstance(value, dict):
        raise UsageError("--chat-template-kwargs is no JSON object", fix="write it like '{\"thinking\": true}'")
    return value

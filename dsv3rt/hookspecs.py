"""Every hook, on one screen. They run while a model is assembled or a command line is built, never after.

Registering hooks are called with a `register(name, builder)` function; a name claimed twice is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    # for annotations alone: `dsv3rt --help` must not import torch
    import click
    from torch import nn

    from dsv3rt import interfaces as api
    from dsv3rt.assembly import AssemblyPlan

hookspec = pluggy.HookspecMarker("dsv3rt")
hookimpl = pluggy.HookimplMarker("dsv3rt")


@hookspec
def register_attention(register: Callable[[str, api.AttentionBuilder], None]) -> None:
    """Offer attention modules: builder(site) -> api.Attention."""


@hookspec
def register_routing(register: Callable[[str, api.RoutingBuilder], None]) -> None:
    """Offer routers: builder(site) -> api.Router."""


@hookspec
def register_quantization(register: Callable[[str, api.QuantizationBuilder], None]) -> None:
    """Offer storage formats and their kernels: builder(site) -> api.Quantization."""


@hookspec
def register_head(register: Callable[[str, api.HeadBuilder], None]) -> None:
    """Offer prediction heads: builder(head_site) -> api.PredictionHead."""


@hookspec
def register_tokenizer(register: Callable[[str, api.TokenizerBuilder], None]) -> None:
    """Offer tokenizers: builder(folder) -> api.Tokenizer, or None when the folder is not for it."""


@hookspec
def register_chat_format(register: Callable[[str, api.ChatFormatBuilder], None]) -> None:
    """Offer chat formats: builder(folder) -> api.ChatFormat, or None when the folder is not for it."""


@hookspec
def register_initialiser(register: Callable[[str, api.Initialiser], None]) -> None:
    """Offer weight initialisers for training and `synth`: initialiser(name, tensor, config) fills the tensor."""


@hookspec
def register_routing_observer(register: Callable[[str, api.RoutingObserver], None]) -> None:
    """Watch routing decisions, read only, when asked for by name."""


@hookspec
def register_commands(cli: click.Group) -> None:
    """Add commands to `dsv3rt`."""


@hookspec
def plan_resolved(plan: AssemblyPlan) -> None:
    """The slots are chosen, nothing is built. Raise a UserError to refuse."""


@hookspec
def model_assembled(model: nn.Module, plan: AssemblyPlan) -> None:
    """The model is built and loaded, not yet compiled. Look, do not touch."""

"""Runs the decoder, and whatever a prediction head asks for: uncompiled at once, compiled as soon as that is ready.

There are two ways to compile, and both are used. A *block* graph is one decoder block for a few tokens or for many; all
blocks of a kind share it, so making it takes the same time however many layers there are. A *whole* graph is everything
a step does; it saves the way from block to block, which matters in small models only.

Legend: B sequences, T new tokens, L tokens whose logits are wanted, D hidden, V vocabulary.
"""

from __future__ import annotations

import os
import time
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from dsv3rt.compile.live import LiveCompiler
from dsv3rt.compile.program import Counters, Plain, Program, Shared
from dsv3rt.compile.service import Compiler
from dsv3rt.compile.spec import TOKEN_RANGES
from dsv3rt.compile.store import GraphStore
from dsv3rt.errors import UsageError
from dsv3rt.interfaces import Cache, Compiled
from dsv3rt.model.decoder import Block, Decoder

CompileMode = Literal["auto", "full", "block", "off", "wait"]

WHOLE_UP_TO_BYTES = 256 << 20
"""Where reading the weights takes longer than about 10 ms, what a whole graph saves does not show."""
WHOLE_FIRST_UP_TO_LAYERS = 8
"""A whole graph takes a second or two a layer to make. Where there are more, blocks run compiled until it is there."""
FEW_TOKENS = TOKEN_RANGES[0][1]
"""Up to so many at once are a decode step, more are a prompt."""
LAST = 8
"""The urgency of what can wait longest; see `Compiler.request`."""
_BLOCK_PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")


class DecodeStep(nn.Module):
    """A decoder's forward for a few tokens: (logits float32 [B, T, V], hidden [B, T, D])."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, ids_BT: Tensor, positions_BT: Tensor, caches: Sequence[Cache]) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = self.decoder(ids_BT, positions_BT, caches)
        return result


class Engine:
    """`step` is the decoder's forward; `graph` makes any other module's forward as quick.

    Modes: `off` compiles nothing; `block` compiles blocks; `full` whole steps, and blocks for the rest; `auto` is
    `full` for a small model and `block` for others; `wait` is `auto` where every call waits for its graph.
    """

    def __init__(
        self, decoder: Decoder, mode: str, *, cache_folder: Path | None = None, jobs: int | None = None
    ) -> None:
        """cache_folder: where compiled graphs are kept; jobs: how many are made at a time. Raises UsageError."""
        if mode not in get_args(CompileMode):
            raise UsageError(f"unknown compile mode {mode!r}", fix=f"known: {', '.join(get_args(CompileMode))}")
        self.decoder = decoder
        self.mode = mode
        weights = sum(tensor.nbytes for tensor in decoder.parameters())
        observed = any(getattr(part, "observers", ()) for part in decoder.modules())
        self._blocks = mode != "off" and not observed
        self._whole = self._blocks and (mode == "full" or (mode != "block" and weights <= WHOLE_UP_TO_BYTES))
        if jobs is None:
            cores = os.cpu_count() or 1
            # two at least: they run at low priority, and beside a quick reader most of the machine is free
            jobs = cores if mode == "wait" else min(cores, max(2, cores // 2))
        self._deep = len(decoder.model.layers) > WHOLE_FIRST_UP_TO_LAYERS
        compiler = Compiler(GraphStore(cache_folder), torch.get_num_threads(), min(jobs, 4))
        self._shared = Shared(compiler, LiveCompiler(), wait=mode == "wait")
        if self._blocks:
            self._install(decoder)
        self._step = self._program(DecodeStep(decoder), {0: 1, 1: 1}) if self._whole else None
        self._graphs: dict[Hashable, Program] = {}
        """By what `_alike` says of a module."""

    @torch.inference_mode()
    def step(
        self, ids_BT: Tensor, positions_BT: Tensor, caches: Sequence[Cache], last: int | None = 1
    ) -> tuple[Tensor, Tensor]:
        """(logits float32 [B, L, V], hidden [B, T, D]); see Decoder.forward."""
        if self._step is None or ids_BT.shape[1] > FEW_TOKENS:
            logits_BLV, hidden_BTD = self.decoder(ids_BT, positions_BT, caches, last)
            return logits_BLV, hidden_BTD
        logits_BTV, hidden_BTD = self._step(ids_BT, positions_BT, caches)
        tokens = ids_BT.shape[1]
        return logits_BTV if last is None or last >= tokens else logits_BTV[:, tokens - last :], hidden_BTD

    @torch.inference_mode()
    def prepare(self, caches: Sequence[Cache]) -> None:
        """Ask for every graph that a conversation with such caches will need, before it is met: first a few tokens,
        then prompts."""
        if not self._blocks:
            return
        device = next(self.decoder.parameters()).device
        few, many = (torch.zeros(1, tokens, dtype=torch.int64, device=device) for tokens in (1, FEW_TOKENS + 1))
        if self._step is not None:
            self._step.prepare(few, few, caches)
        for ids_BT in (few, many) if self._deep or not self._whole else (many,):
            x_BTD = self.decoder.model.embed_tokens(ids_BT)
            blocks = list(zip(self.decoder.model.layers, caches, strict=True))
            for block, cache in reversed(blocks):  # the kind that most are of comes after others: it is asked for first
                program: Any = block.forward
                program.prepare(x_BTD, ids_BT, cache)

    def graph(self, module: nn.Module, token_dims: Mapping[int, int] | None = None) -> Compiled:
        """The module's forward, compiled when that has been asked for; see `interfaces.Compile`. Every conversation
        makes such modules anew, of the same parts: those that are alike share one program, which is loaded once."""
        if self._blocks:
            self._install(module)
        if not self._whole:
            return Plain(module)
        key = _alike(module), *sorted((token_dims or {}).items())
        if key not in self._graphs:
            self._graphs[key] = self._program(module, token_dims)
        return self._graphs[key]

    def _program(self, module: nn.Module, token_dims: Mapping[int, int] | None) -> Program:
        return Program(module, self._shared, token_dims=token_dims, urgency=LAST if self._deep else 0)

    def _install(self, module: nn.Module) -> None:
        """From now on every decoder block in `module` runs its compiled graph where there is one."""
        for block in module.modules():
            if type(block) is Block and "forward" not in vars(block):
                bare = _bare(block)
                program = Program(bare, self._shared, token_dims={0: 1, 1: 1}, urgency=1)
                block.forward = program  # type: ignore[method-assign, assignment]

    # -- how it is going ----------------------------------------------------------------------------------------------

    @property
    def counters(self) -> Counters:
        return self._shared.counters

    @property
    def compile_s(self) -> float:
        """Seconds from the first request for a graph that was not in the store until the last one was made, so far."""
        compiler = self._shared.compiler
        made = [ticket.seconds for ticket in self._shared.tickets if ticket.live is not None]
        if compiler.started is None:
            return sum(made)
        last = compiler.finished if compiler.idle and compiler.finished is not None else time.perf_counter()
        return last - compiler.started + sum(made)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until everything asked for so far is compiled (or has failed to); False when time ran out."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for ticket in list(self._shared.tickets):
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not ticket.done.wait(left):
                return False
        return True

    def warm(self, *, strict: bool = False) -> None:
        """Say that everything needed has been compiled: from now on whatever is not counts as late, with one warning,
        or is an error if `strict`."""
        self._shared.warm, self._shared.strict = True, strict

    def close(self) -> None:
        """Stop compiling. What is compiled goes on running."""
        self._shared.compiler.close()


def _alike(module: nn.Module) -> Hashable:
    """The same for modules that compute the same: of one class, made of the very same parts. (As long as the first of
    them is kept, and its parts with it, no other has their ids.)"""
    if module._parameters or module._buffers:
        return id(module)
    parts = [(name, id(part)) for name, part in module._modules.items()]
    key = type(module), *parts, *((name, value) for name, value in vars(module).items() if not name.startswith("_"))
    try:
        hash(key)
    except TypeError:
        return id(module)
    return key


def _bare(block: Block) -> Block:
    """A block that shares the parts of `block` and has nothing else: prediction heads add to theirs."""
    bare = Block.__new__(Block)
    nn.Module.__init__(bare)
    for name in _BLOCK_PARTS:
        setattr(bare, name, getattr(block, name))
    bare.training = block.training
    return bare

"""Runs the decoder, and whatever a prediction head asks for: uncompiled at once, compiled as soon as that is ready.

There are two ways to compile, and both are used. A *block* graph is one decoder block for one token, a few, or many;
all blocks of a kind share it, so making it takes the same time however many layers there are. A *whole* graph is
everything a step does; it saves the way from block to block, which matters in small models only.

Legend: B sequences, T new tokens, L tokens whose logits are wanted, D hidden, V vocabulary.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from dsv3rt.compile.live import LiveCompiler
from dsv3rt.compile.program import Counters, Program, Shared
from dsv3rt.compile.service import Compiler
from dsv3rt.compile.store import GraphStore
from dsv3rt.errors import UsageError
from dsv3rt.interfaces import Cache
from dsv3rt.model.decoder import Block, Decoder

CompileMode = Literal["auto", "full", "block", "off", "wait"]

WHOLE_UP_TO_BYTES = 256 << 20
"""Where reading the weights takes longer than about 10 ms, what a whole graph saves does not show."""
MOST_DRAFTS = 15
_BLOCK_PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")


class DecodeStep(nn.Module):
    """A decoder's forward with the number of wanted logits fixed: (logits float32 [B, L, V], hidden [B, T, D])."""

    def __init__(self, decoder: nn.Module, last: int | None) -> None:
        super().__init__()
        self.decoder = decoder
        self.last = last

    def forward(self, ids_BT: Tensor, positions_BT: Tensor, caches: Sequence[Cache]) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = self.decoder(ids_BT, positions_BT, caches, self.last)
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
            jobs = max(1, (os.cpu_count() or 1) // (1 if mode == "wait" else 2))
        compiler = Compiler(GraphStore(cache_folder), torch.get_num_threads(), min(jobs, 4))
        self._shared = Shared(compiler, LiveCompiler(), wait=mode == "wait")
        if self._blocks:
            self._install(decoder)
        self._steps: dict[int | None, Callable[..., Any]] = {
            last: self._program(DecodeStep(decoder, last)) for last in (1, None)
        }

    @torch.inference_mode()
    def step(
        self, ids_BT: Tensor, positions_BT: Tensor, caches: Sequence[Cache], last: int | None = 1
    ) -> tuple[Tensor, Tensor]:
        """(logits float32 [B, L, V], hidden [B, T, D]); see Decoder.forward."""
        tokens = ids_BT.shape[1]
        if tokens == 1 and last != 0:
            result = self._steps[1](ids_BT, positions_BT, caches)
        elif tokens <= 1 + MOST_DRAFTS and last is None:
            result = self._steps[None](ids_BT, positions_BT, caches)
        else:
            result = self.decoder(ids_BT, positions_BT, caches, last)
        logits_BLV, hidden_BTD = result
        return logits_BLV, hidden_BTD

    def graph(self, module: nn.Module) -> Callable[..., Any]:
        """The module's forward, compiled when that has been asked for; see `interfaces.Compile`."""
        if self._blocks:
            self._install(module)
        return torch.inference_mode()(self._program(module))

    def _program(self, module: nn.Module) -> Callable[..., Any]:
        return Program(module, self._shared) if self._whole else module

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


def _bare(block: Block) -> Block:
    """A block that shares the parts of `block` and has nothing else: prediction heads add to theirs."""
    bare = Block.__new__(Block)
    nn.Module.__init__(bare)
    for name in _BLOCK_PARTS:
        setattr(bare, name, getattr(block, name))
    bare.training = block.training
    return bare

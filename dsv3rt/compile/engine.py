"""Runs the decoder: single steps through torch.compile, everything else as it is.

Legend: B sequences, T new tokens, L tokens whose logits are wanted, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from dsv3rt.errors import UsageError
from dsv3rt.interfaces import Cache
from dsv3rt.model.decoder import Decoder

CompileMode = Literal["auto", "full", "block", "off", "wait"]
Step = Callable[[Tensor, Tensor, Sequence[Cache], int | None], tuple[Tensor, Tensor]]


class Engine:
    """`step` is the decoder's forward, compiled when that has been asked for."""

    def __init__(self, decoder: Decoder, mode: str) -> None:
        if mode not in get_args(CompileMode):
            raise UsageError(f"unknown compile mode {mode!r}", fix=f"known: {', '.join(get_args(CompileMode))}")
        self.decoder = decoder
        self.mode = mode
        self._single: Step = decoder if mode == "off" else torch.compile(decoder, fullgraph=True, dynamic=False)

    @torch.inference_mode()
    def step(
        self, ids_BT: Tensor, positions_BT: Tensor, caches: Sequence[Cache], last: int | None = 1
    ) -> tuple[Tensor, Tensor]:
        """(logits float32 [B, L, V], hidden [B, T, D]); see Decoder.forward."""
        run = self._single if ids_BT.shape[1] == 1 else self.decoder
        return run(ids_BT, positions_BT, caches, last)

    def graph(self, module: nn.Module) -> Callable[..., Any]:
        """The module's forward, for a prediction head; see `interfaces.Compile`."""
        return torch.inference_mode()(module)

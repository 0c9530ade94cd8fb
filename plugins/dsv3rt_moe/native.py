"""The native router. Legend: N tokens, D hidden, E experts, K chosen experts."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from dsv3rt.native import NativeLibrary, load_library

ROUTE_UP_TO = 16
"""Tokens of one call for which a token's experts and weights do not depend on the others; above, torch's product is
faster."""


def _fake_route(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    keep: int,
    best_of_group: int,
    chosen: int,
    softmax: bool,
    renormalise: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], chosen), x.new_empty(x.shape[0], chosen, dtype=torch.int64)


@functools.cache
def library() -> NativeLibrary | None:
    """The operator `dsv3rt::route`, or None where it cannot be built.

    route(x [N, D], weight [E, D], bias [E] or empty (all contiguous float32), groups, keep, best_of_group (a group is
    worth the sum of so many scores: 1 or 2; 0: no groups), chosen, softmax (else sigmoid), renormalise, scale)
    -> (weights float32 [N, K], ids int64 [N, K]).
    """
    loaded = load_library("route", Path(__file__).parent / "csrc")
    if loaded is not None:
        torch.library.register_fake("dsv3rt::route", _fake_route)
    return loaded

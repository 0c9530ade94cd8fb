"""What one graph is made for: the shapes of its arguments, and which of them may vary.

Arguments are tensors, or caches (nested sequences of tensors, with token positions along dimension 1, see
`interfaces.Cache`). Everything is fixed but two kinds of sizes: the capacity of the caches in an argument, and, where
a module says so, the number of new tokens T, which falls into one of `TOKEN_RANGES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TOKEN_RANGES = ((1, 16), (17, 1 << 16))
"""Decoding and verifying drafts, up to where rows are bitwise independent (see `interfaces.Quantization`); prefill."""

CAPACITY_RANGE = (2, 1 << 30)
"""A compiler treats 0 and 1 as special, so caches of one slot are not compiled for."""

Size = int | str
"""A number, or the name of a size that varies."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor, contiguous."""

    shape: tuple[Size, ...]
    dtype: str

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


ArgSpec = TensorSpec | tuple[Any, ...]
"""A tensor, or a nested tuple of them."""


@dataclass(frozen=True)
class GraphSpec:
    """The arguments of one graph."""

    args: tuple[ArgSpec, ...]
    ranges: tuple[tuple[str, int, int], ...]
    """(name, least, most) of every size that varies."""

    @property
    def many_tokens(self) -> bool:
        """Whether it is for a prompt rather than for a decode step."""
        return any(name == "T" and most > TOKEN_RANGES[0][1] for name, _, most in self.ranges)

    def canonical(self) -> str:
        """The same text for the same graph, for cache keys."""
        return repr((self.args, self.ranges))


def flatten(args: Sequence[Any], into: list[Tensor]) -> list[Tensor]:
    """All tensors in nested sequences, in order."""
    for arg in args:
        if isinstance(arg, Tensor):
            into.append(arg)
        else:
            flatten(arg, into)
    return into


def spec_of(args: Sequence[Any], token_dims: Mapping[int, int]) -> GraphSpec | None:
    """The graph these arguments need, or None when no graph is made for such.

    token_dims: argument index -> the dimension that counts new tokens.
    """
    ranges: dict[str, tuple[int, int]] = {}
    specs: list[ArgSpec] = []
    for index, arg in enumerate(args):
        if isinstance(arg, Tensor):
            shape: list[Size] = list(arg.shape)
            if index in token_dims:
                tokens = arg.shape[token_dims[index]]
                least, most = next((r for r in TOKEN_RANGES if r[0] <= tokens <= r[1]), (0, 0))
                if most == 0:
                    return None
                if least < most:
                    ranges["T"] = (least, most)
                    shape[token_dims[index]] = "T"
            specs.append(TensorSpec(tuple(shape), _name(arg.dtype)))
            continue
        name = f"S{index}"
        parts = flatten(arg, [])
        capacities = {part.shape[1] for part in parts if part.dim() > 1}
        if len(capacities) > 1 or not all(CAPACITY_RANGE[0] <= size <= CAPACITY_RANGE[1] for size in capacities):
            return None
        if capacities:
            ranges[name] = CAPACITY_RANGE
        specs.append(_cache_spec(arg, name))
    return GraphSpec(tuple(specs), tuple((name, *ranges[name]) for name in sorted(ranges)))


def _cache_spec(arg: Any, name: str) -> ArgSpec:
    if isinstance(arg, Tensor):
        shape = tuple(name if d == 1 else size for d, size in enumerate(arg.shape))
        return TensorSpec(shape, _name(arg.dtype))
    return tuple(_cache_spec(part, name) for part in arg)


def unflatten(args: Sequence[ArgSpec], flat: Iterator[Tensor]) -> tuple[Any, ...]:
    """The arguments `flatten` has taken apart."""
    return tuple(next(flat) if isinstance(arg, TensorSpec) else unflatten(arg, flat) for arg in args)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""The native operators of decoding: building, loading, calling. Legend as in csrc/mla.cpp."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsv3rt.interfaces import Cache
from dsv3rt.native import NativeLibrary, load_library

DECODE_UP_TO = 16
"""Tokens of one call for which a token's result does not depend on the others, and for which the absorbed form reads
less than the expanded one computes."""


def fake_attend(q: Tensor, *rest: Any) -> Tensor:
    """What every operator of latent attention returns, without values: [B, T, H*V].

    `rest`: their other arguments, of which the sixth is `kv_b` and the last six are `heads` to `interleaved`.
    """
    kv_b, heads, nope = rest[4], rest[-6], rest[-5]
    return q.new_empty((*q.shape[:2], kv_b.shape[0] - heads * nope))


@functools.cache
def library() -> NativeLibrary | None:
    """The operators `dsv3rt::mla_decode` and `dsv3rt::mla_decode_fp8`, or None where they cannot be built."""
    loaded = load_library("mla", Path(__file__).parent / "csrc")
    if loaded is not None:
        torch.library.register_fake("dsv3rt::mla_decode", fake_attend)
        torch.library.register_fake("dsv3rt::mla_decode_fp8", fake_attend)
    return loaded


def decode(
    q: Tensor,
    kv: Tensor,
    norm: Tensor,
    positions: Tensor,
    inv_freq: Tensor,
    kv_b: Tensor,
    kv_b_scale: Tensor,
    cache: Cache,
    *,
    heads: int,
    nope: int,
    eps: float,
    magnitude: float,
    scale: float,
    interleaved: bool,
) -> Tensor:
    """Attend from up to DECODE_UP_TO new tokens; writes them into `cache` in place.

    q float32 [B, T, H*(P+R)] and kv float32 [B, T, C+R] as their projections leave them (no norm, no rope yet);
    norm [C]; positions int64 [B, T]; inv_freq float32 [R/2]; kv_b [H*(P+V), C] float32, bfloat16, float16, or e4m3 with
    float32 scales of its 128x128 blocks (else an empty tensor). Returns float32 [B, T, H*V], to be given to o_proj.
    """
    ops = torch.ops.dsv3rt
    run = ops.mla_decode if len(cache) == 1 else ops.mla_decode_fp8
    y: Tensor = run(
        q, kv, norm, positions, inv_freq, kv_b, kv_b_scale, *cache, heads, nope, eps, magnitude, scale, interleaved
    )
    return y

"""What the benches share: the read bandwidth of the machine in the same run, and figures beside the timings."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from dsv3rt_fp8 import native_ops

from dsv3rt import native

CALLS = 6
"""Products a round: each of another matrix, so that none is in a cache."""


@functools.cache
def read_gbs() -> float:
    """The limit: a plain read of memory, GB/s, measured once a run."""
    return native.read_bandwidth_gbs()


def median_seconds(benchmark: Any) -> float | None:
    """Of the rounds; None under --benchmark-disable, where each bench runs once and nothing is timed."""
    return benchmark.stats.stats.median if benchmark.stats is not None else None


def report_bytes(benchmark: Any, bytes_a_round: int, read_a_round: int | None = None) -> None:
    """Note GB/s and the fraction of the limit, from the median round: of the weights as they are stored, and, where
    fewer bytes of a copy are read for them, of those."""
    median = median_seconds(benchmark)
    if median is None:
        return
    gbs = bytes_a_round / median / 1e9
    benchmark.extra_info["gb_per_s"] = round(gbs, 2)
    benchmark.extra_info["read_gb_per_s"] = round(read_gbs(), 2)
    benchmark.extra_info["fraction_of_read"] = round(gbs / read_gbs(), 3)
    if read_a_round not in (None, bytes_a_round):
        benchmark.extra_info["fraction_really_read"] = round(read_a_round / median / 1e9 / read_gbs(), 3)


def report_flops(benchmark: Any, flops_a_round: int, reference_seconds: float) -> None:
    """Note GFLOP/s, and the speed beside the same product by torch in float32."""
    median = median_seconds(benchmark)
    if median is None:
        return
    benchmark.extra_info["gflop_per_s"] = round(flops_a_round / median / 1e9, 1)
    benchmark.extra_info["speed_beside_float32_gemm"] = round(reference_seconds / median, 3)


def random_bytes(count: int) -> torch.Tensor:
    """uint8 [count]: finite as e4m3 codes, none zero."""
    pool = torch.randint(0x30, 0x40, (1 << 20,), dtype=torch.uint8)
    return pool.repeat(-(-count // pool.numel()))[:count].contiguous()


def random_weights(count: int, dtype: torch.dtype) -> torch.Tensor:
    """e4m3, or bfloat16 with the exponents that weights have: [count]."""
    if dtype == torch.float8_e4m3fn:
        return random_bytes(count).view(dtype)
    pool = (torch.randn(1 << 20) / 45).to(dtype)
    return pool.repeat(-(-count // pool.numel()))[:count].contiguous()


def packed(weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The words of bfloat16 matrices [N, K] that have been packed. Skips where none can be."""
    if not native_ops.reads_packed():
        pytest.skip("no kernels for packed weights")
    rooms = native_ops.make_rooms([weight.shape for weight in weights])
    assert all(native_ops.pack_weights(*pair) for pair in zip(weights, rooms, strict=True))
    return [room.word for room in rooms]

"""What the benches share: the read bandwidth of the machine in the same run, and figures beside the timings."""

from __future__ import annotations

import functools
from typing import Any

import torch

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


def report_bytes(benchmark: Any, bytes_a_round: int) -> None:
    """Note GB/s and the fraction of the limit, from the median round."""
    median = median_seconds(benchmark)
    if median is None:
        return
    gbs = bytes_a_round / median / 1e9
    benchmark.extra_info["gb_per_s"] = round(gbs, 2)
    benchmark.extra_info["read_gb_per_s"] = round(read_gbs(), 2)
    benchmark.extra_info["fraction_of_read"] = round(gbs / read_gbs(), 3)


def report_flops(benchmark: Any, flops_a_round: int, reference_seconds: float) -> None:
    """Note GFLOP/s, and the speed beside the same product by torch in float32."""
    median = median_seconds(benchmark)
    if median is None:
        return
    benchmark.extra_info["gflop_per_s"] = round(flops_a_round / median / 1e9, 1)
    benchmark.extra_info["speed_beside_float32_gemm"] = round(reference_seconds / median, 3)


def random_bytes(count: int) -> torch.Tensor:
    """uint8 [count]: finite as e4m3 codes and as bfloat16 alike, none zero."""
    pool = torch.randint(0x30, 0x40, (1 << 20,), dtype=torch.uint8)
    return pool.repeat(-(-count // pool.numel()))[:count].contiguous()

"""Phase decode: what a long past costs the whole model: steps at 4,096 tokens of context beside steps at 64.

`DSV3RT_BENCH_CHECKPOINT` names a folder to use instead of random FP8 weights of `small`'s shape.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

import pytest

import dsv3rt
from dsv3rt.generate.sequence import Sequence
from dsv3rt.testing import preset, random_checkpoint

SHORT, LONG = 64, 4096
STEPS = 8
ROUNDS = 25


@pytest.mark.benchmark(group="decode")
def test_a_long_past(benchmark: Any, tmp_path: Path) -> None:
    """Seconds for some steps after a long past; `extra_info` has the speeds after both, timed in turn, and their ratio:
    how much of its speed decoding keeps."""
    if (named := os.environ.get("DSV3RT_BENCH_CHECKPOINT")) is not None:
        checkpoint = Path(named)
    else:
        timed = benchmark.enabled
        shape = preset("small", layers=None if timed else 2)
        checkpoint = random_checkpoint(tmp_path / "model", shape, fp8=True)
    runtime = dsv3rt.load(
        checkpoint, compile=os.environ.get("DSV3RT_BENCH_COMPILE", "wait"), head="none", max_context=LONG + STEPS
    )
    sequences = {}
    for past in (SHORT, LONG):
        sequences[past] = Sequence(runtime.engine, LONG + STEPS, runtime.plan.device)
        sequences[past].extend([7 + i % 89 for i in range(past)])

    def steps(past: int) -> float:
        sequences[past].rewind(past)
        begin = time.perf_counter()
        for _ in range(STEPS):
            sequences[past].extend([5])
        return time.perf_counter() - begin

    steps(SHORT), steps(LONG)
    seconds: dict[int, list[float]] = {SHORT: [], LONG: []}
    benchmark.pedantic(
        lambda: seconds[LONG].append(steps(LONG)), setup=lambda: seconds[SHORT].append(steps(SHORT)), rounds=ROUNDS
    )
    short, long = (STEPS / statistics.median(seconds[past]) for past in (SHORT, LONG))
    benchmark.extra_info.update(
        {
            f"tokens/s at {SHORT}": round(short, 1),
            f"tokens/s at {LONG}": round(long, 1),
            # of neighbours in time, since a machine's speed may change from one minute to the next
            "ratio": round(statistics.median(a / b for a, b in zip(seconds[SHORT], seconds[LONG], strict=True)), 3),
        }
    )

"""What a decode step costs beside reading weights: the bundled checkpoint's fit the processor's cache.

llama.cpp decodes a model of that size (12M parameters, Q8_0, two threads) at 1,450 tokens/s: 0.7 ms a token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import dsv3rt
from dsv3rt.generate.sequence import Sequence

BUNDLED = Path(__file__).parents[1] / "checkpoints" / "dsv3rt-mini"
STEPS = 50


@pytest.mark.parametrize("mode", ["wait", "off"])
def test_a_decode_step(benchmark: Any, mode: str) -> None:
    """Seconds for 50 steps at one position after another, from 16 tokens on; no sampling, no text."""
    if not (BUNDLED / "config.json").is_file():
        pytest.skip("the bundled checkpoint is not there")
    runtime = dsv3rt.load(BUNDLED, compile=mode, head="none", max_context=512)
    sequence = Sequence(runtime.engine, 512, runtime.plan.device)
    sequence.extend(list(range(16)))

    def steps() -> None:
        sequence.rewind(16)
        for _ in range(STEPS):
            sequence.extend([5])

    steps()
    benchmark(steps)
    counters = runtime.engine.counters
    assert mode == "off" or counters.compiled > STEPS

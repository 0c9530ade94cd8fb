"""Phase: decoding with drafts against decoding without, on held-out prompts of the bundled checkpoint.

The two are timed in turn within one run; `extra_info` has the speed-up and the acceptance by position.
`DSV3RT_BENCH_COMPILE` chooses how the model is compiled (default `wait`: everything is before anything is timed).
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

import pytest

import dsv3rt

CHECKPOINT = Path(__file__).parent.parent / "checkpoints" / "dsv3rt-mini"
PROMPTS = (
    "Tell me a story about a patient turtle and a kite.",
    "What is a lantern?",
    "What is 34 + 27?",
    "Who are you, and what can you do?",
    "Tell me a story about a rainy day in a small town.",
)
ROUNDS = 5


@pytest.fixture(scope="module")
def runtime() -> dsv3rt.Runtime:
    return dsv3rt.load(CHECKPOINT, compile=os.environ.get("DSV3RT_BENCH_COMPILE", "wait"))


def answer(runtime: dsv3rt.Runtime, drafts: int | str, temperature: float) -> tuple[float, list[Any]]:
    """Seconds of decoding (prompts not counted) for all prompts, and the answers."""
    answers = [
        runtime.chat(
            [{"role": "user", "content": prompt}],
            max_tokens=120,
            temperature=temperature,
            seed=7 if temperature else None,
            draft_tokens=drafts,
        )
        for prompt in PROMPTS
    ]
    timings = [generation.timings for generation in answers]
    return sum((t.gen_tokens - 1) / t.gen_tps for t in timings if t.gen_tps), answers


@pytest.mark.skipif(not CHECKPOINT.exists(), reason="the bundled checkpoint is not here")
@pytest.mark.parametrize("temperature", [0.0, 0.6])
@pytest.mark.parametrize("drafts", [1, 2, 3, "auto"])
def test_decoding_with_drafts(benchmark: Any, runtime: dsv3rt.Runtime, drafts: int | str, temperature: float) -> None:
    for count in (0, drafts, 0, drafts):
        answer(runtime, count, temperature)  # graphs are asked for, and waited for, here
    plain: list[float] = []
    answers: list[Any] = []

    def setup() -> None:
        seconds, generations = answer(runtime, 0, temperature)
        plain.append(seconds / sum(len(generation.token_ids) - 1 for generation in generations))

    drafted: list[float] = []

    def run() -> None:
        started = time.perf_counter()
        seconds, generations = answer(runtime, drafts, temperature)
        assert seconds <= time.perf_counter() - started
        drafted.append(seconds / sum(len(generation.token_ids) - 1 for generation in generations))
        answers[:] = generations

    benchmark.pedantic(run, setup=setup, rounds=ROUNDS)
    tried: list[float] = []
    for j in range(4):
        rates = [g.speculation.per_position[j] for g in answers if len(g.speculation.per_position) > j]
        if rates:
            tried.append(round(statistics.mean(rates), 3))
    benchmark.extra_info.update(
        {
            "plain tokens/s": round(1 / statistics.median(plain), 1),
            "tokens/s": round(1 / statistics.median(drafted), 1),
            "speed-up": round(statistics.median(plain) / statistics.median(drafted), 3),
            "acceptance": round(
                sum(g.speculation.accepted for g in answers) / max(1, sum(g.speculation.drafted for g in answers)), 3
            ),
            "by position": tried,
        }
    )

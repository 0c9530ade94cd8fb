"""Phase: decoding with drafts against decoding without: on held-out prompts of the bundled checkpoint, on a prompt that
repeats itself (n-gram drafts), and on random weights, where no draft is accepted and `auto` should cost nothing.

The two are timed in turn within one run, now the one first and now the other; `extra_info` has the speed-up and the
acceptance by position. `DSV3RT_BENCH_COMPILE` chooses how the model is compiled (default `wait`: everything is before
anything is timed).
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dsv3rt_mtp.head import DEFAULT_MAX_DRAFTS

import dsv3rt
from dsv3rt.testing import random_checkpoint

CHECKPOINT = Path(__file__).parent.parent / "checkpoints" / "dsv3rt-mini"
PROMPTS = (
    "Tell me a story about a patient turtle and a kite.",
    "What is a lantern?",
    "What is 34 + 27?",
    "Who are you, and what can you do?",
    "Tell me a story about a rainy day in a small town.",
)
ROUNDS = 6
"""An even number: in every second one drafting comes first."""


REPEATING = "Copy: " + " ".join(f"item {i} costs {3 * i} coins;" for i in range(1, 9)) + "\nCopy: "


def load(folder: Path, head: str = "mtp") -> dsv3rt.Runtime:
    return dsv3rt.load(folder, compile=os.environ.get("DSV3RT_BENCH_COMPILE", "wait"), head=head)


@pytest.fixture(scope="module")
def runtime() -> dsv3rt.Runtime:
    return load(CHECKPOINT)


def answer(runtime: dsv3rt.Runtime, drafts: int | str, temperature: float) -> tuple[float, list[Any]]:
    """Seconds of decoding (prompts not counted) for all prompts, and the answers."""
    answers = [
        runtime.chat(
            [{"role": "user", "content": prompt}],
            max_tokens=120,
            temperature=temperature,
            # with a seed, auto may not look at the clock
            seed=7 if temperature and drafts != "auto" else None,
            draft_tokens=drafts,
        )
        for prompt in PROMPTS
    ]
    return decoding_seconds(answers), answers


def continuation(runtime: dsv3rt.Runtime, drafts: int | str, tokens: int = 300) -> tuple[float, list[Any]]:
    """The same for one long greedy continuation."""
    answers = [runtime.generate(REPEATING, max_tokens=tokens, temperature=0, ignore_eos=True, draft_tokens=drafts)]
    return decoding_seconds(answers), answers


def decoding_seconds(answers: list[Any]) -> float:
    timings = [generation.timings for generation in answers]
    return sum((t.gen_tokens - 1) / t.gen_tps for t in timings if t.gen_tps)


@pytest.mark.skipif(not CHECKPOINT.exists(), reason="the bundled checkpoint is not here")
@pytest.mark.parametrize("temperature", [0.0, 0.6])
@pytest.mark.parametrize("drafts", [1, 2, 3, "auto"])
def test_decoding_with_drafts(benchmark: Any, runtime: dsv3rt.Runtime, drafts: int | str, temperature: float) -> None:
    compare(benchmark, lambda count: answer(runtime, count, temperature), drafts)


@pytest.mark.skipif(not CHECKPOINT.exists(), reason="the bundled checkpoint is not here")
@pytest.mark.parametrize("drafts", [4, "auto"])
def test_a_prompt_that_repeats_itself(benchmark: Any, drafts: int | str) -> None:
    repeating = load(CHECKPOINT, head="ngram")
    compare(benchmark, lambda count: continuation(repeating, count), drafts)


@pytest.mark.skipif(not CHECKPOINT.exists(), reason="the bundled checkpoint is not here")
def test_drafts_that_are_never_accepted(benchmark: Any, tmp_path: Path) -> None:
    """The bundled checkpoint's shapes, and so its graphs, with random weights; a conversation of its own each time."""
    config = json.loads((CHECKPOINT / "config.json").read_text())
    folder = random_checkpoint(tmp_path / "random", config, tokenizer=True)
    random_weights = load(folder)
    random_weights.conversations.keep = 0
    compare(benchmark, lambda count: continuation(random_weights, count), "auto", rounds=20)


def compare(
    benchmark: Any, run: Callable[[int | str], tuple[float, list[Any]]], drafts: int | str, rounds: int = ROUNDS
) -> None:
    """Time `run(drafts)` and `run(0)`, `rounds` times each: 0 d d 0 0 d d 0 .."""
    # graphs are asked for, and waited for, here: those of every count that `auto` may choose, too
    warmed = (*(range(1, DEFAULT_MAX_DRAFTS + 1) if drafts == "auto" else ()), 0, drafts, 0, drafts)
    for count in warmed if benchmark.enabled else ():
        run(count)
    plain: list[float] = []
    drafted: list[float] = []
    answers: list[Any] = []

    def seconds_a_token(count: int | str, answers: list[Any]) -> float:
        seconds, answers[:] = run(count)
        return seconds / sum(len(generation.token_ids) - 1 for generation in answers)

    def without_drafts() -> None:
        due = len(drafted) + 1 - len(drafted) % 2
        while len(plain) < min(due, rounds):
            plain.append(seconds_a_token(0, []))

    benchmark.pedantic(lambda: drafted.append(seconds_a_token(drafts, answers)), setup=without_drafts, rounds=rounds)
    without_drafts()
    tried: list[float] = []
    for j in range(4):
        rates = [g.speculation.per_position[j] for g in answers if len(g.speculation.per_position) > j]
        if rates:
            tried.append(round(statistics.mean(rates), 3))
    benchmark.extra_info.update(
        {
            "plain tokens/s": round(1 / statistics.median(plain), 1),
            "tokens/s": round(1 / statistics.median(drafted), 1),
            # of neighbours in time, since a machine's speed may change from one minute to the next
            "speed-up": round(statistics.median(a / b for a, b in zip(plain, drafted, strict=True)), 3),
            "acceptance": round(
                sum(g.speculation.accepted for g in answers) / max(1, sum(g.speculation.drafted for g in answers)), 3
            ),
            "by position": tried,
        }
    )

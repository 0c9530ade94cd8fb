"""After warm-up nothing of the bundled checkpoint runs uncompiled or is compiled again, whatever is asked of it.

Its graphs are those of `dsv3rt chat` and lie in the user's store: made once, they are there for later runs.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
from torch import nn

import dsv3rt
from dsv3rt.compile.live import graphs_made
from dsv3rt.compile.program import Program
from dsv3rt.runtime import Runtime

pytestmark = pytest.mark.threads  # as in the chat: graphs for another number of threads are others
DRAFTS: list[int | str] = [0, 1, 2, 3, "auto"]
SETTINGS: list[dict[str, float]] = [
    {"temperature": 0},
    {"temperature": 0, "repetition_penalty": 1.3},
    {"temperature": 0.8},
    {"temperature": 0.8, "top_k": 20},
    {"temperature": 1.2, "top_p": 0.9},
    {"temperature": 0.7, "min_p": 0.1, "top_p": 0.8},
    {"temperature": 1, "top_k": 1500, "top_p": 0.95, "repetition_penalty": 1.1},
]
LENGTHS = [1, 2, 16, 17, 18, 33, 300, 528, 600]
"""Of prompts, with the edges of what graphs are for: steps of up to 16 tokens, chunks of up to 512."""


@pytest.fixture(scope="module")
def warm() -> Iterator[Runtime]:
    """The bundled checkpoint once every kind of answer has been given and compiled."""
    runtime = dsv3rt.load(dsv3rt.bundled_checkpoint())
    runtime.engine._shared.compiler.jobs = os.cpu_count() or 1  # what is answered meanwhile may take its time
    draw = random.Random(1)
    for drafts, settings in itertools.product(DRAFTS, SETTINGS):
        answer(runtime, draw, draw.choice(LENGTHS[:6]), 12, drafts, settings)
    for length in LENGTHS:
        answer(runtime, draw, length, 2, 1, SETTINGS[0])
    assert runtime.engine.wait(600)
    yield runtime
    runtime.engine.close()


def answer(
    runtime: Runtime, draw: random.Random, length: int, count: int, drafts: int | str, settings: dict[str, Any]
) -> list[int]:
    prompt = [draw.randrange(3, runtime.config.vocab_size) for _ in range(length)]
    options = {"top_k": 0, "top_p": 1.0, "min_p": 0.0} | settings
    generation = runtime.generate(prompt, max_tokens=count, ignore_eos=True, draft_tokens=drafts, **options)
    assert len(generation.token_ids) == count
    return [*prompt, *generation.token_ids]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_2000_tokens_of_all_kinds(warm: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the engine's own count, by torch's, and by what modules that have graphs are called."""
    counters = warm.engine.counters
    before, dynamo = (counters.compiled, counters.uncompiled), graphs_made()
    forbid_forward({type(thing.module) for thing in gc.get_objects() if isinstance(thing, Program)}, monkeypatch)
    warm.engine.warm(strict=True)
    draw, done, kinds = random.Random(0), 0, list(itertools.product(DRAFTS, SETTINGS))
    draw.shuffle(kinds)
    for index, (drafts, settings) in enumerate(kinds):
        length = LENGTHS[index] if index < len(LENGTHS) else draw.randrange(1, 150)
        count = draw.randrange(30, 100)
        talk = answer(warm, draw, length, count, drafts, settings)
        # the same conversation goes on: its context grows, the prompt is what has been added
        follow_up = [*talk, *(draw.randrange(3, warm.config.vocab_size) for _ in range(draw.randrange(1, 60)))]
        warm.generate(follow_up, max_tokens=20, ignore_eos=True, draft_tokens=drafts, **settings)
        done += count + 20
    assert done >= 2000
    assert (counters.uncompiled, counters.late, graphs_made()) == (before[1], 0, dynamo)
    assert counters.compiled - before[0] > 1000


def forbid_forward(classes: set[type[nn.Module]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"Block", "DecodeStep", "GreedyAccept", "SampledDraft"} <= {kind.__name__ for kind in classes}
    for kind in classes:

        def forward(self: nn.Module, *args: Any) -> Any:
            raise AssertionError(f"{type(self).__name__} ran uncompiled")

        monkeypatch.setattr(kind, "forward", forward)

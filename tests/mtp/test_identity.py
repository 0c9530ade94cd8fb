"""Greedy text does not depend on drafting: tokens and caches, bit for bit. `identity.py` compares more of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from dsv3rt_fp8.convert import convert
from identity import chats, compare

import dsv3rt

RANDOM = {"vocab_size": 24, "hidden_size": 256, "kv_lora_rank": 128, "q_lora_rank": 128, "moe_intermediate_size": 128}
"""Large enough for blocks of 128; with few tokens, so that drafts are accepted by chance now and then."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fp8", "bf16"])
def test_the_bundled_checkpoint(kind: str, tmp_path: Path) -> None:
    folder = dsv3rt.bundled_checkpoint()
    if kind == "bf16":
        convert(folder, tmp_path / "bf16", "bf16")
        folder = tmp_path / "bf16"
    runtime = dsv3rt.load(folder, compile="off")
    found = compare(runtime, 600, [1, 3], given=chats(runtime)[::4])
    assert found.accepted > 100 and found.rejected > 100


def random_folder(make_checkpoint: Callable[..., Path], kind: str) -> Path:
    return make_checkpoint(dtype=torch.bfloat16, fp8=kind == "fp8", max_position_embeddings=1024, **RANDOM)


@pytest.mark.parametrize("kind", ["fp8", "bf16"])
def test_a_random_checkpoint(kind: str, make_checkpoint: Callable[..., Path]) -> None:
    runtime = dsv3rt.load(random_folder(make_checkpoint, kind), compile="off", max_context=700)
    found = compare(runtime, 600, [1, 3])
    assert found.accepted > 20 and found.rejected > 100


@pytest.mark.slow
def test_a_compiled_random_checkpoint(make_checkpoint: Callable[..., Path]) -> None:
    runtime = dsv3rt.load(random_folder(make_checkpoint, "fp8"), compile="wait", max_context=700)
    found = compare(runtime, 2000, [2])
    assert found.accepted > 20 and found.rejected > 100
    assert runtime.engine.counters.compiled > found.tokens

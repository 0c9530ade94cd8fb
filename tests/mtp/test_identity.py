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
    found = compare(runtime, 1000, [1, 2, 4], given=chats(runtime)[::4])
    assert found.accepted > 300 and found.rejected > 300


@pytest.mark.parametrize("compiled", [pytest.param(False, id="uncompiled"), pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["fp8", "bf16"])
def test_a_random_checkpoint(kind: str, compiled: bool, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_checkpoint(dtype=torch.bfloat16, fp8=kind == "fp8", max_position_embeddings=1024, **RANDOM)
    if compiled and kind == "bf16":
        pytest.skip("the graphs are the same but for the products")
    runtime = dsv3rt.load(folder, compile="wait" if compiled else "off", max_context=700)
    found = compare(runtime, 1000, [2] if compiled else [1, 3, "auto"])
    assert found.accepted > 20 and found.rejected > 100

"""Logits and greedy text equal those of `transformers` on random checkpoints, in float32.

The bound is 1e-3 of the logits' standard deviation; both sides compute in float32 on the same values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parity_cases import Case, all_cases, make, reference

from dsv3rt.generate.sequence import Sequence
from dsv3rt.runtime import Runtime, load
from dsv3rt.testing.presets import FP8_CONFIG
from dsv3rt.testing.synth import random_checkpoint

TOLERANCE = 1e-3
LENGTHS = (1, 2, 17, 300)


def runtime(checkpoint: Path) -> Runtime:
    return load(checkpoint, dtype="float32", compile="off", device="cpu", head="none")


def prompt(length: int) -> list[int]:
    return torch.randint(2, 211, (length,), generator=torch.Generator().manual_seed(length)).tolist()


@torch.inference_mode()
def expected(model: Any, ids: list[int]) -> torch.Tensor:
    logits = model(torch.tensor([ids])).logits[0]
    assert isinstance(logits, torch.Tensor)
    return logits


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    assert got.shape == want.shape and got.dtype == torch.float32
    assert (got - want).abs().max() <= TOLERANCE * want.std(), f"{(got - want).abs().max() / want.std():.2e} of std"


@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_logits(case: Case, tmp_path: Path) -> None:
    checkpoint = make(case, tmp_path / "made")
    model, mine = reference(checkpoint, tmp_path / "reference"), runtime(checkpoint)
    for length in LENGTHS:
        close(mine.logits(prompt(length)), expected(model, prompt(length)))


V3 = Case("deepseek_v3", groups=4, yarn=True)
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "float16": ({}, {"dtype": torch.float16}),
    "float32": ({}, {"dtype": torch.float32}),
    "tied embeddings": ({"tie_word_embeddings": True}, {}),
    "attention bias": ({"attention_bias": True}, {}),
    "weights not renormalised": ({"norm_topk_prob": False}, {}),
    "all layers dense": ({"first_k_dense_replace": 3}, {}),
    "more groups kept": ({"topk_group": 3}, {}),
    "another eps": ({"rms_norm_eps": 1e-3}, {}),
    "newer tools' rope": (
        {"rope_scaling": None, "rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e4}},
        {},
    ),
    "power-of-two scales": ({"quantization_config": {**FP8_CONFIG, "scale_fmt": "ue8m0"}}, {}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, tmp_path: Path) -> None:
    """Keys of config.json and storage formats beside the grid."""
    keys, options = VARIANTS[name]
    checkpoint = random_checkpoint(tmp_path / "made", V3.config() | {"quantization_config": None} | keys, **options)
    model = reference(checkpoint, tmp_path / "reference")
    close(runtime(checkpoint).logits(prompt(50)), expected(model, prompt(50)))


GREEDY = [
    Case("deepseek_v3", groups=4, yarn=True, fp8=True, shards=3),
    Case("deepseek_v3", q_lora=False),
    Case("kimi_k2", yarn=True),
    Case("deepseek_v2", "greedy", q_lora=False, yarn=True),
    Case("deepseek_v2", "group_limited_greedy", groups=4, fp8=True),
    Case("glm4_moe_lite", shards=3),
]


@pytest.mark.parametrize("case", GREEDY, ids=str)
def test_greedy_tokens(case: Case, tmp_path: Path) -> None:
    checkpoint = make(case, tmp_path / "made")
    model = reference(checkpoint, tmp_path / "reference")
    for length in (1, 40):
        ids = torch.tensor([prompt(length)])
        options = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False, "eos_token_id": None}
        want = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)[0, length:].tolist()
        mine = runtime(checkpoint).generate(prompt(length), max_tokens=32, temperature=0, ignore_eos=True)
        assert mine.token_ids == want


@pytest.mark.parametrize("case", GREEDY, ids=str)
def test_however_the_prompt_is_cut(case: Case, tmp_path: Path) -> None:
    """Whole (expanded attention), in chunks, and token by token (absorbed attention): the same logits."""
    mine = runtime(make(case, tmp_path / "made"))
    ids = prompt(90)
    whole = mine.logits(ids)
    for sizes in ([1] * 90, [30, 30, 30], [64, 1, 2, 16, 7]):
        sequence = Sequence(mine.engine, 256, torch.device("cpu"))
        at, parts = 0, []
        for size in sizes:
            parts.append(sequence.extend(ids[at : at + size], last=None)[0])
            at += size
        close(torch.cat(parts), whole)

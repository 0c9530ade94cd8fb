"""What a long context costs: memory only for what is used, and what an FP8 cache does to the answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dsv3rt_mla.cache import LatentCache

import dsv3rt
from dsv3rt.generate.sequence import Sequence
from dsv3rt.testing.presets import PRESETS
from dsv3rt.testing.synth import random_checkpoint

CPU = torch.device("cpu")
TINY = {
    "vocab_size": 211,
    "hidden_size": 160,
    "intermediate_size": 136,
    "kv_lora_rank": 64,
    "q_lora_rank": None,
    "moe_intermediate_size": 72,
    "n_routed_experts": 16,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
    "n_group": 4,
    "topk_group": 2,
    "num_nextn_predict_layers": 0,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("model") / "checkpoint"
    return random_checkpoint(folder, dict(PRESETS["v3"]) | TINY, dtype=torch.float32, fp8=False)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def test_memory_is_touched_as_it_is_used(checkpoint: Path) -> None:
    runtime = dsv3rt.load(checkpoint, compile="off", head="none", cache_dtype="float32")
    assert runtime.plan.max_context == 163_840
    warm = Sequence(runtime.engine, 1024, CPU)
    warm.extend(list(range(200)) * 2)
    before = resident_bytes()
    sequence = Sequence(runtime.engine, runtime.plan.max_context, CPU)
    capacity = sum(part.nbytes for cache in sequence.caches for part in cache)
    sequence.extend(list(range(200)) * 2)
    for token in range(20):
        sequence.extend([token])
    grown = resident_bytes() - before
    assert capacity > 150e6
    assert grown < capacity / 10, f"{grown / 1e6:.0f} MB for 420 of 163,840 tokens"


def test_bytes_per_token_are_those_of_the_tensors() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
        layout = LatentCache(512, 64, dtype)
        cache = layout.make(1, 10, CPU)
        assert sum(part.nbytes for part in cache) == 10 * layout.bytes_per_token
    assert LatentCache(512, 64, torch.bfloat16).bytes_per_token * 61 == 70_272  # DeepSeek-V3
    assert LatentCache(512, 64, torch.float8_e4m3fn).bytes_per_token == 644


def test_an_fp8_cache_changes_logits_a_little(tmp_path: Path) -> None:
    """Relative to float32 caches, over a random model without experts (whose choice may flip); bfloat16 to compare."""
    config = dict(PRESETS["v3"]) | TINY | {"first_k_dense_replace": 3}
    checkpoint = random_checkpoint(tmp_path / "dense", config, dtype=torch.float32, fp8=False)
    ids = torch.randint(0, 211, (150,), generator=torch.Generator().manual_seed(1)).tolist()
    logits = {}
    for dtype in ("float32", "bfloat16", "fp8"):
        runtime = dsv3rt.load(checkpoint, compile="off", head="none", max_context=256, cache_dtype=dtype)
        sequence = Sequence(runtime.engine, 256, CPU)
        prompt = sequence.extend(ids[:120], last=None)[0]
        logits[dtype] = torch.cat([prompt, *(sequence.extend([token])[0] for token in ids[120:])])
    exact = logits["float32"]
    error = {name: float((value - exact).square().mean().sqrt() / exact.std()) for name, value in logits.items()}
    assert 0 < error["bfloat16"] < 2.0**-8
    assert 0 < error["fp8"] < 0.04

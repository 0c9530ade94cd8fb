"""The whole model: tokens together are tokens alone, bit for bit. Speculation's token identity rests on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dsv3rt_mla import native

import dsv3rt
from dsv3rt.generate.sequence import Sequence
from dsv3rt.testing.presets import PRESETS
from dsv3rt.testing.synth import random_checkpoint

pytestmark = pytest.mark.skipif(native.library() is None, reason="no compiler")

TINY = {
    "vocab_size": 211,
    "hidden_size": 160,
    "intermediate_size": 136,
    "kv_lora_rank": 40,
    "moe_intermediate_size": 72,
    "n_routed_experts": 16,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "max_position_embeddings": 640,
}
FAMILIES = {
    "v3": {"q_lora_rank": 56, "n_group": 4, "topk_group": 2, "num_nextn_predict_layers": 0},
    "v2-lite": {"q_lora_rank": None, "n_group": 1, "topk_group": 1},
}


@pytest.fixture(scope="module", params=[(family, fp8) for family in FAMILIES for fp8 in (False, True)], ids=str)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, fp8 = request.param
    folder: Path = tmp_path_factory.mktemp("model") / "checkpoint"
    return random_checkpoint(folder, dict(PRESETS[family]) | TINY | FAMILIES[family], fp8=fp8)


@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_logits_of_tokens_together_are_those_of_single_steps(checkpoint: Path, cache_dtype: torch.dtype) -> None:
    runtime = dsv3rt.load(checkpoint, compile="off", head="none", max_context=400, cache_dtype=cache_dtype)
    ids = torch.randint(0, 211, (180,), generator=torch.Generator().manual_seed(3)).tolist()

    def start() -> Sequence:
        sequence = Sequence(runtime.engine, 400, torch.device("cpu"))
        sequence.extend(ids[:90])
        return sequence

    singly = start()
    alone = [singly.extend([token], last=None) for token in ids[90:135]]
    together, at = start(), 0
    for count in range(1, 10):  # 45 tokens, over the borders of chunks of the cache at 96 and 128
        torch.set_num_threads(1 + count % 2)
        logits, hidden = together.extend(ids[90 + at : 90 + at + count], last=None)
        for i in range(count):
            assert torch.equal(logits[i], alone[at + i][0][0]), f"token {i} of {count}: logits"
            assert torch.equal(hidden[i], alone[at + i][1][0]), f"token {i} of {count}: hidden state"
        at += count

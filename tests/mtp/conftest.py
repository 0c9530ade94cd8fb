"""Small random checkpoints, written once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv3rt import runtime as dsv3rt_runtime
from dsv3rt.testing import random_checkpoint

SMALL_CONFIG = {
    "model_type": "deepseek_v3",
    "vocab_size": 48,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 32,
    "q_lora_rank": 40,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 512,
    "num_nextn_predict_layers": 1,
    "rope_theta": 10000.0,
}


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_checkpoint(modules=1, seed=0, dtype=float32, fp8=False, **config) -> folder; equal calls give one folder."""
    made: dict[str, Path] = {}

    def make(
        *, modules: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32, fp8: bool = False, **config: Any
    ) -> Path:
        key = repr((modules, seed, dtype, fp8, sorted(config.items())))
        if key not in made:
            raw = {**SMALL_CONFIG, "num_nextn_predict_layers": modules, **config}
            folder = tmp_path_factory.mktemp("checkpoint") / "random"
            made[key] = random_checkpoint(folder, raw, seed=seed, dtype=dtype, fp8=fp8)
        return made[key]

    return make


@pytest.fixture
def make_runtime(make_checkpoint: Callable[..., Path]) -> Callable[..., Any]:
    """make_runtime(head=None, plugins=(), **checkpoint) -> an uncompiled float32 Runtime of a random checkpoint."""

    def make(*, head: str | None = None, plugins: tuple[Any, ...] = (), **checkpoint: Any) -> Any:
        folder = make_checkpoint(**checkpoint)
        return dsv3rt_runtime.load(folder, head=head, plugins=plugins, compile="off", dtype="float32")

    return make

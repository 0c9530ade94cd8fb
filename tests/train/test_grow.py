"""A grown model says what the old one said, and its new layers can learn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dsv3rt_train import export
from dsv3rt_train.balance import LoadObserver
from dsv3rt_train.grow import grow, order
from dsv3rt_train.model.build import TrainableModel
from dsv3rt_train.run import grow_checkpoint
from train_cases import TINY

from dsv3rt.config import ModelConfig
from dsv3rt.errors import UsageError
from dsv3rt.runtime import load


@pytest.fixture
def base(tiny: tuple[TrainableModel, LoadObserver], tmp_path: Path) -> Path:
    export.write(tiny[0], tmp_path / "base", TINY, fp8=False)
    return tmp_path / "base"


@pytest.mark.parametrize("layers", [4, 5, 8])
def test_logits_and_drafts_are_unchanged(base: Path, tmp_path: Path, layers: int) -> None:
    facts = grow_checkpoint(base, tmp_path / "grown", layers=layers)
    config = json.loads((tmp_path / "grown" / "config.json").read_text())
    assert config["num_hidden_layers"] == facts["layers"] == layers
    ids = list(range(4, 40))
    old, new = (load(folder, compile="off", head="mtp", dtype="float32") for folder in (base, tmp_path / "grown"))
    assert new.plan.config.num_hidden_layers == layers
    assert torch.equal(old.logits(ids), new.logits(ids))
    told = [rt.generate(ids, max_tokens=24, temperature=0.0, draft_tokens=1) for rt in (old, new)]
    assert told[0].token_ids == told[1].token_ids
    drafted = [(t.speculation.drafted, t.speculation.accepted, t.speculation.per_position) for t in told]
    assert drafted[0] == drafted[1] and drafted[0][0] > 0


def test_new_layers_follow_expert_layers_evenly(tiny_config: ModelConfig) -> None:
    sources = [(0, False), (1, False), (1, True), (1, True), (2, False), (2, True), (2, True), (2, True)]
    assert order(tiny_config, 8) == sources


def test_only_what_writes_to_the_residual_stream_is_zero(tiny: tuple[TrainableModel, LoadObserver]) -> None:
    grown = grow(tiny[0].official(), tiny[0].config, 4)
    zero = {name for name, tensor in grown.items() if "layers.3." in name and not tensor.any()}
    assert zero >= {f"model.layers.3.mlp.experts.{e}.down_proj.weight" for e in range(8)}
    assert {name.split(".")[-2] for name in zero} <= {"o_proj", "down_proj", "gate"}  # gate: its bias is zero at first
    assert grown["model.layers.3.self_attn.q_b_proj.weight"].any()


@pytest.mark.parametrize(
    ("change", "layers"),
    [({}, 3), ({"n_routed_experts": 0}, 5), ({"moe_layer_freq": 2}, 4)],
    ids=["less", "dense", "mixed"],
)
def test_what_cannot_grow_is_refused(tiny_config: ModelConfig, change: dict[str, int], layers: int) -> None:
    with pytest.raises(UsageError):
        order(replace(tiny_config, **change), layers)

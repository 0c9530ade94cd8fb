"""Random checkpoints: the official layout, sane numbers, and nothing half-made."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dsv3rt.config import ModelConfig
from dsv3rt.errors import CheckpointError, UsageError
from dsv3rt.runtime import load
from dsv3rt.testing import PRESETS, preset, random_checkpoint
from dsv3rt.testing.synth import FP8, dequantize_blocks, quantize_blocks
from dsv3rt.testing.writer import Planned, split, split_evenly
from dsv3rt.weights import Checkpoint
from dsv3rt.weights.official import official_tensors

SMALL = preset("tiny", layers=2) | {"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2}

SHRUNK = ("hidden_size", "intermediate_size", "moe_intermediate_size", "n_routed_experts", "num_attention_heads",
          "num_experts_per_tok", "vocab_size", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
          "bos_token_id", "eos_token_id")  # fmt: skip
"""What makes a whole model's config small, its depth left alone."""


def contents(folder: Path) -> dict[str, torch.Tensor]:
    source = Checkpoint(folder)
    return {name: source.get(name) for name in source.names()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name].float(), b[name].float()) for name in a)


@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    [("v3", 671.026e9, 46183), ("moonlight-16b-a3b", 15.960e9, 5317), ("v2-lite", 15.706e9, 5291),
     ("glm-4.7-flash", 29.943e9, 9703), ("kimi-k2", 1026.408e9, 69975)],
)  # fmt: skip
def test_official_sizes(name: str, parameters: float, tensors: int) -> None:
    """Published parameter counts (without MTP modules), and the number of weights in the index."""
    config = ModelConfig.from_dict(PRESETS[name])
    listed = list(official_tensors(config))
    main = [tensor for tensor in listed if tensor.layer is None or tensor.layer < config.num_hidden_layers]
    assert sum(tensor.numel for tensor in main) == pytest.approx(parameters, rel=1e-4)
    assert len(listed) == tensors
    assert len({tensor.name for tensor in listed}) == tensors


def test_bf16_checkpoint(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "made", SMALL, tokenizer=True)
    tensors = contents(folder)
    assert {file.name for file in folder.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    config = ModelConfig.from_folder(folder)
    assert config.bos_token_id == 256 and config.eos_token_ids == (257,)
    assert {tensor.name: tensor.shape for tensor in official_tensors(config)} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    bias = tensors["model.layers.1.mlp.gate.e_score_correction_bias"]
    assert bias.dtype == torch.float32 and 5 < bias.min() < bias.max() < 7
    assert {tensor.dtype for name, tensor in tensors.items() if not name.endswith("bias")} == {torch.bfloat16}
    assert tensors["model.layers.0.self_attn.o_proj.weight"].float().std() == pytest.approx(128**-0.5, rel=0.1)
    assert torch.equal(tensors["model.layers.2.embed_tokens.weight"], tensors["model.embed_tokens.weight"])
    assert all(tensor.data_ptr() % 4 == 0 for tensor in tensors.values())


def test_fp8_checkpoint(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "made", SMALL, fp8=True)
    exact = contents(random_checkpoint(tmp_path / "exact", SMALL, dtype=torch.float32))
    tensors = contents(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["weight_block_size"] == [128, 128]
    quantized = {name for name in tensors if f"{name}_scale_inv" in tensors}
    assert {name for name in tensors if tensors[name].dtype == FP8} == quantized
    assert not [name for name in quantized if any(part in name for part in ("norm", "embed", "head", "gate.w", "eh_"))]
    assert "model.layers.2.mlp.experts.3.up_proj.weight" in quantized, "the MTP module's experts too"
    name = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight"
    assert tensors[name].shape == (80, 256) and tensors[f"{name}_scale_inv"].shape == (1, 2)
    for name in quantized:
        meant = dequantize_blocks(tensors[name], tensors[f"{name}_scale_inv"], 128, 128)
        assert (meant - exact[name]).abs().max() <= exact[name].abs().max() / 16
        assert tensors[name].float().abs().max() == 448


def test_ue8m0_scales_are_powers_of_two() -> None:
    values = torch.randn(200, 130, generator=torch.Generator().manual_seed(0))
    weight, scale = quantize_blocks(values, 128, 128, round_up=True)
    assert torch.equal(torch.log2(scale), torch.log2(scale).round())
    assert weight.float().abs().max() <= 448
    assert (dequantize_blocks(weight, scale, 128, 128) - values).abs().max() < values.abs().max() / 8


def test_shards_and_seeds(tmp_path: Path) -> None:
    whole = contents(random_checkpoint(tmp_path / "whole", SMALL, seed=3))
    parts = random_checkpoint(tmp_path / "parts", SMALL, seed=3, shards=4)
    assert len(list(parts.glob("model-*-of-00004.safetensors"))) == 4
    assert same(contents(parts), whole), "values do not depend on the files"
    assert not same(contents(random_checkpoint(tmp_path / "other", SMALL, seed=4)), whole)


@pytest.mark.parametrize("fp8", [False, True])
def test_large_tensors_come_from_the_pool(tmp_path: Path, fp8: bool) -> None:
    config = SMALL | {"vocab_size": 40000, "intermediate_size": 2500, "num_nextn_predict_layers": 0}
    tensors = contents(random_checkpoint(tmp_path / "made", config, fp8=fp8))
    embed = tensors["model.embed_tokens.weight"].float()
    assert embed.std() == pytest.approx(1, rel=0.01)
    assert len(embed.unique(dim=0)) == len(embed)
    name = "model.layers.0.mlp.up_proj.weight"
    up = dequantize_blocks(tensors[name], tensors[f"{name}_scale_inv"], 128, 128) if fp8 else tensors[name].float()
    assert up.std() == pytest.approx(256**-0.5, rel=0.1)
    assert up.abs().max() < 8 * up.std()


def test_initialiser(tmp_path: Path) -> None:
    def ones(name: str, tensor: torch.Tensor, config: ModelConfig) -> None:
        tensor.fill_(2 if name == "model.norm.weight" else 1)

    tensors = contents(random_checkpoint(tmp_path / "made", SMALL, initialiser=ones))
    assert tensors.pop("model.norm.weight").eq(2).all()
    assert all(tensor.eq(1).all() for tensor in tensors.values())


def test_refuses_to_overwrite(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    random_checkpoint(tmp_path / "empty", SMALL)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match="exists already"):
        random_checkpoint(tmp_path / "empty", SMALL)
    assert sorted(tmp_path.rglob("*")) == before


def test_needs_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(CheckpointError, match=r"needs 0.0\d GB, its disk has 0.00 GB free"):
        random_checkpoint(tmp_path / "made", SMALL)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointError, match="the disk is full"):
            random_checkpoint(tmp_path / "made", SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def interrupt_at(share: float) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        if done > share * total:
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_synth_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        random_checkpoint(tmp_path / "made", SMALL, shards=3, progress=interrupt_at(0.7))
    assert not list(tmp_path.iterdir())


def test_presets() -> None:
    assert preset("v3-slice", mtp=1)["num_nextn_predict_layers"] == 1
    assert preset("v3", layers=2)["first_k_dense_replace"] == 2
    for call in (lambda: preset("v4"), lambda: preset("tiny", layers=0), lambda: preset("v2-lite", mtp=1)):
        with pytest.raises(UsageError):
            call()
    with pytest.raises(UsageError, match="too small"):
        random_checkpoint("/nowhere", SMALL | {"vocab_size": 100}, tokenizer=True)


def test_split_keeps_order_and_size() -> None:
    tensors = [Planned(str(size), (size,), torch.uint8) for size in (3, 3, 9, 1, 2)]
    assert [[tensor.name for tensor in shard] for shard in split(tensors, 6)] == [["3", "3"], ["9"], ["1", "2"]]
    assert [[tensor.name for tensor in shard] for shard in split_evenly(tensors, 3)] == [["3", "3"], ["9"], ["1", "2"]]
    assert len(split_evenly(tensors, 40)) == 5


@pytest.mark.parametrize("fp8", [False, True])
def test_activations_stay_of_order_one_at_depth(tmp_path: Path, fp8: bool) -> None:
    """27 layers deep, logits have the deviation they are made for, and no token is certain."""
    config = preset("moonlight-16b-a3b") | {key: SMALL[key] for key in SHRUNK}
    runtime = load(random_checkpoint(tmp_path / "made", config, fp8=fp8), compile="off", head="none", max_context=64)
    logits = runtime.logits(torch.arange(2, 50).tolist())
    assert logits.std() == pytest.approx(4, rel=0.1)
    assert 0.2 < logits.softmax(-1).amax(-1).mean() < 0.8
    with torch.inference_mode():
        hidden = runtime.engine.decoder.hidden(torch.arange(2, 50)[None], torch.arange(48)[None])
    assert 1 < hidden.std() < 20

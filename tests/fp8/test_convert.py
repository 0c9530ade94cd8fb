"""`dsv3rt quantize`, against the layout of official checkpoints and an independent reader."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dsv3rt_fp8 import numerics
from dsv3rt_fp8.convert import convert
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from stored import VALUES, exact

from dsv3rt.config import ModelConfig
from dsv3rt.errors import CheckpointError, ConfigError
from dsv3rt.runtime import load
from dsv3rt.testing import preset, random_checkpoint
from dsv3rt.weights import Checkpoint
from dsv3rt.weights.sizes import Sizes


@pytest.fixture(scope="module")
def bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantize") / "bf16"
    return random_checkpoint(folder, preset("tiny"), fp8=False, shards=2, tokenizer=True)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_the_layout_is_that_of_official_checkpoints(bf16: Path, tmp_path: Path) -> None:
    """Same names, shapes and types as a checkpoint of this config that is FP8 from the start."""
    convert(bf16, tmp_path / "fp8", "fp8", max_shard_bytes=200_000)
    official = random_checkpoint(tmp_path / "official", preset("tiny"), fp8=True)
    mine, theirs = tensors(tmp_path / "fp8"), tensors(official)
    assert {name: (t.shape, t.dtype) for name, t in mine.items()} == {
        name: (t.shape, t.dtype) for name, t in theirs.items()
    }
    assert len(list((tmp_path / "fp8").glob("*.safetensors"))) > 1
    index = json.loads((tmp_path / "fp8" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(mine)
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())
    assert config["quantization_config"] == json.loads((official / "config.json").read_text())["quantization_config"]
    assert {p.name for p in bf16.iterdir() if "safetensors" not in p.name} == {
        p.name for p in (tmp_path / "fp8").iterdir() if "safetensors" not in p.name
    }


@pytest.mark.parametrize("ue8m0", [False, True])
def test_values_are_near_and_the_way_back_is_exact(bf16: Path, tmp_path: Path, ue8m0: bool) -> None:
    convert(bf16, tmp_path / "fp8", "fp8", ue8m0=ue8m0)
    convert(tmp_path / "fp8", tmp_path / "back", "bf16")
    before, quantized, after = tensors(bf16), tensors(tmp_path / "fp8"), tensors(tmp_path / "back")
    assert before.keys() == after.keys()
    for name, value in before.items():
        scale = quantized.get(f"{name}_scale_inv")
        if scale is None:
            assert torch.equal(after[name], value)
            continue
        meant = exact(quantized[name], scale)
        assert torch.equal(after[name], meant.float().to(torch.bfloat16))
        assert float((meant - value.double()).norm() / value.double().norm()) < 0.04
        if ue8m0:
            assert bool((torch.frexp(scale).mantissa == 0.5).all())
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert "quantization_config" not in config


def test_the_result_loads_and_computes(bf16: Path, tmp_path: Path) -> None:
    convert(bf16, tmp_path / "fp8", "fp8")
    convert(tmp_path / "fp8", tmp_path / "back", "bf16")
    ids = [3, 14, 15, 92]
    fp8 = load(tmp_path / "fp8", compile="off", head="none").logits(ids)
    back = load(tmp_path / "back", compile="off", head="none").logits(ids)
    assert float((fp8 - back).norm() / fp8.norm()) < 0.02


def test_the_head_if_asked_for(bf16: Path, tmp_path: Path) -> None:
    """The same from a bf16 checkpoint and from an FP8 one; what it costs is counted; the way back is exact."""
    convert(bf16, tmp_path / "once", "fp8", head=True)
    convert(bf16, tmp_path / "fp8", "fp8")
    convert(tmp_path / "fp8", tmp_path / "twice", "fp8", head=True)
    before, once, twice = tensors(tmp_path / "fp8"), tensors(tmp_path / "once"), tensors(tmp_path / "twice")
    assert once.keys() == twice.keys() and {"lm_head.weight_scale_inv"} <= once.keys() - before.keys()
    assert all(torch.equal(once[name].view(torch.uint8), twice[name].view(torch.uint8)) for name in once)
    meant = exact(once["lm_head.weight"], once["lm_head.weight_scale_inv"])
    assert float((meant - before["lm_head.weight"].double()).norm() / meant.norm()) < 0.04
    for folder in ("once", "twice"):
        sizes = Sizes.of(ModelConfig.from_folder(tmp_path / folder))
        assert sizes.disk_bytes == sum(tensor.nbytes for tensor in once.values())
    ids = [3, 14, 15, 92]
    logits = load(tmp_path / "once", compile="off", head="none").logits(ids)
    plain = load(tmp_path / "fp8", compile="off", head="none").logits(ids)
    assert 0 < float((logits - plain).norm() / plain.norm()) < 0.05
    convert(tmp_path / "twice", tmp_path / "back", "bf16")
    assert torch.equal(tensors(tmp_path / "back")["lm_head.weight"], meant.float().to(torch.bfloat16))


def test_refusals(bf16: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="already"):
        convert(bf16, tmp_path / "x", "bf16")
    with pytest.raises(CheckpointError, match="exists already"):
        convert(bf16, bf16, "fp8")
    convert(bf16, tmp_path / "y", "fp8", head=True)
    with pytest.raises(ConfigError, match="already"):
        convert(tmp_path / "y", tmp_path / "x", "fp8", head=True)
    assert not (tmp_path / "x").exists()


def test_nan_is_named(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "bad", preset("tiny", layers=1, mtp=0), fp8=False)
    name = "model.layers.0.mlp.up_proj.weight"
    info = Checkpoint(folder).infos[name]
    with info.file.open("r+b") as stream:
        stream.seek(info.start)
        stream.write(b"\xff\xff")
    with pytest.raises(CheckpointError, match=name):
        convert(folder, tmp_path / "out", "fp8")
    assert not (tmp_path / "out").exists()


def test_the_command_prints_one_object(bf16: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dsv3rt", "quantize", str(bf16), str(tmp_path / "out"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["to"] == "fp8" and report["matrices"] > 0 and report["bytes_after"] < report["bytes_before"]


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 300), columns=st.integers(1, 300), seed=st.integers(0, 2**31), ue8m0=st.booleans())
def test_quantizing_weights(rows: int, columns: int, seed: int, ue8m0: bool) -> None:
    """Every value is within half a step of its code, and the largest of a block uses the top of the range."""
    torch.manual_seed(seed)
    weight = torch.randn(rows, columns) * torch.exp(torch.randn(rows, 1))
    codes, scale = numerics.quantize_weight(weight, ue8m0=ue8m0)
    meant = exact(codes, scale)
    step = numerics.spread(scale, rows, columns).double() * 2.0**-9
    assert bool(((meant - weight).abs() <= weight.abs() * 2.0**-4 + step).all())
    peaks = VALUES[codes.view(torch.uint8).long()].abs().amax()
    assert float(peaks) >= (224 if ue8m0 else 448)


def test_a_block_of_zeros() -> None:
    codes, scale = numerics.quantize_weight(torch.zeros(3, 3))
    assert torch.equal(numerics.dequantize(codes, scale, torch.float32), torch.zeros(3, 3))


@pytest.mark.parametrize("ue8m0", [False, True])
def test_rounding_activations(ue8m0: bool) -> None:
    """One scale for 1 x 128 values; powers of two, and never below the need, with ue8m0."""
    x = torch.randn(3, 2, 300) * torch.tensor([1e-3, 1.0, 1e3]).view(3, 1, 1)
    codes, scale = numerics.quantize_activations(x, ue8m0=ue8m0)
    assert codes.shape == x.shape and scale.shape == (3, 2, 3)
    peak = x[..., :128].abs().amax(-1)
    assert bool((scale[..., 0] * 448 >= peak * (1 - 1e-6)).all())
    if ue8m0:
        assert bool((torch.frexp(scale).mantissa == 0.5).all())
    rounded = numerics.round_activations(x, ue8m0=ue8m0)
    assert rounded.dtype == x.dtype
    assert bool(
        ((rounded - x).abs() <= x.abs() * 2.0**-4 + scale.repeat_interleave(128, -1)[..., :300] * 2.0**-9).all()
    )

"""Loading: names, dtypes, sharing, and what may be left over."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dsv3rt.config import ModelConfig
from dsv3rt.errors import CheckpointError, PluginError
from dsv3rt.interfaces import TensorSource
from dsv3rt.weights import Checkpoint, load_weights
from dsv3rt.weights.prefault import prefault

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    model_type="deepseek_v3",
    vocab_size=8,
    hidden_size=4,
    intermediate_size=4,
    num_hidden_layers=1,
    num_attention_heads=1,
    kv_lora_rank=4,
    qk_nope_head_dim=4,
    qk_rope_head_dim=2,
    v_head_dim=4,
)


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4))


class Embed(nn.Module):
    keep_stored_dtype = True

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(8, 4))


class Matrix(nn.Module):
    """Loads itself, as a quantization's linear does."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.stored = nn.Parameter(torch.empty(rows, 4), requires_grad=False)

    def load_tensors(self, source: TensorSource, prefix: str, device: torch.device) -> None:
        self.stored = nn.Parameter(source.get(f"{prefix}.weight", shape=(self.rows, 4)), requires_grad=False)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = Embed()
        self.layers = nn.ModuleDict({"0": nn.ModuleDict({"norm": Norm(), "up": Matrix(6)})})
        self.register_buffer("steps", torch.empty(2, dtype=torch.int64))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Inner()
        self.lm_head = Matrix(8)


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "model.embed_tokens.weight": torch.randn(8, 4, generator=generator).bfloat16(),
        "model.layers.0.norm.weight": torch.randn(4, generator=generator).bfloat16(),
        "model.layers.0.up.weight": torch.randn(6, 4, generator=generator).bfloat16(),
        "model.steps": torch.tensor([1, 2]),
        "lm_head.weight": torch.randn(8, 4, generator=generator).bfloat16(),
    }


def meta_model() -> Model:
    with torch.device("meta"):
        return Model()


def write(folder: Path, contents: dict[str, torch.Tensor]) -> Checkpoint:
    save_file(contents, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({}))
    return Checkpoint(folder)


def test_loads_by_official_name(tmp_path: Path) -> None:
    contents = tensors()
    source = write(tmp_path, contents)
    model = meta_model()
    steps: list[tuple[str, int, int]] = []
    report = load_weights({"": model}, source, CONFIG, device=CPU, progress=lambda *step: steps.append(step))
    norm = model.get_parameter("model.layers.0.norm.weight")
    assert norm.dtype == torch.float32
    assert torch.equal(norm, contents["model.layers.0.norm.weight"].float())
    assert torch.equal(model.model.embed_tokens.weight, contents["model.embed_tokens.weight"])
    assert torch.equal(model.lm_head.stored, contents["lm_head.weight"])
    assert torch.equal(model.get_buffer("model.steps"), contents["model.steps"])
    assert report.tensors == 5 and report.unexpected == () and report.mtp_unused == 0
    assert report.copied_bytes == 4 * 4, "only the norm was converted"
    assert steps[-1] == ("taking weights", source.total_bytes, source.total_bytes)
    assert {stage for stage, _, _ in steps} == {"reading weights", "taking weights"}
    embed = model.model.embed_tokens.weight
    assert embed.data_ptr() == source.get("model.embed_tokens.weight").data_ptr(), "a view of the mapped file"


def test_a_cold_file_is_read_front_to_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is taken from it; an MTP module's part only when a head wants it."""
    mtp = {"model.layers.1.norm.weight": torch.zeros(20 << 20)}
    source = write(tmp_path, tensors() | mtp)
    with torch.device("meta"):
        head = nn.ModuleDict({"1": nn.ModuleDict({"norm": Norm()})})
        head["1"]["norm"].weight = nn.Parameter(torch.empty(20 << 20))
    read: list[tuple[int, int]] = []

    def preadv(descriptor: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        read.append((offset, offset + len(buffers[0])))
        return len(buffers[0])

    monkeypatch.setattr("dsv3rt.weights.prefault._cached", lambda descriptor, offset: False)
    monkeypatch.setattr("dsv3rt.weights.prefault.os.preadv", preadv)
    for roots, wanted in [({"": meta_model()}, False), ({"": meta_model(), "model.layers": head}, True)]:
        steps: list[tuple[str, int, int]] = []
        read.clear()
        load_weights(roots, source, CONFIG, device=CPU, progress=lambda *step, steps=steps: steps.append(step))
        told = [step for step in steps if step[0] == "reading weights"]
        assert steps[: len(told)] == told
        total = source.total_bytes - (0 if wanted else 80 << 20)
        assert told[-1][1] == told[-1][2] == total == sum(end - start for start, end in read)
        assert read == sorted(read)
        at = source.infos["model.layers.1.norm.weight"].start + (79 << 20)
        assert any(start <= at < end for start, end in read) == wanted


def test_what_is_in_the_page_cache_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path, tensors())
    monkeypatch.setattr("dsv3rt.weights.prefault._cached", lambda descriptor, offset: True)
    monkeypatch.setattr("dsv3rt.weights.prefault.os.preadv", lambda *args: pytest.fail("read again"))
    assert prefault(source.infos.values())


def test_prefault_does_not_read_what_would_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path, tensors())
    monkeypatch.setattr("dsv3rt.weights.prefault.available_memory", lambda: source.total_bytes)
    assert not prefault(source.infos.values())
    monkeypatch.setattr("dsv3rt.weights.prefault.available_memory", lambda: 2 * source.total_bytes)
    assert prefault(source.infos.values())


def test_leftovers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    extra = {
        "model.layers.1.enorm.weight": torch.ones(4),
        "model.layers.1.embed_tokens.weight": torch.ones(8, 4),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2),
        "model.layers.0.self_attn.q_proj.bias": torch.ones(2),
    }
    with caplog.at_level(logging.WARNING, "dsv3rt"):
        report = load_weights({"": meta_model()}, write(tmp_path, tensors() | extra), CONFIG, device=CPU)
    assert report.mtp_unused == 2
    assert report.unexpected == ("model.layers.0.self_attn.q_proj.bias",)
    assert [record.getMessage() for record in caplog.records] == [
        "1 tensors of the checkpoint are not used by this model: model.layers.0.self_attn.q_proj.bias"
    ]


def test_tied_embeddings(tmp_path: Path) -> None:
    contents = tensors()
    del contents["lm_head.weight"]
    source = write(tmp_path, contents)
    with pytest.raises(CheckpointError, match=r"lm_head.weight is missing"):
        load_weights({"": meta_model()}, source, CONFIG, device=CPU)
    model = meta_model()
    load_weights({"": model}, source, dataclasses.replace(CONFIG, tie_word_embeddings=True), device=CPU)
    assert model.lm_head.stored.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_shared_parameter_stays_shared(tmp_path: Path) -> None:
    contents = {"a.weight": torch.ones(4), "b.weight": torch.zeros(4)}
    with torch.device("meta"):
        model = nn.ModuleDict({"a": Norm(), "b": Norm()})
    model["b"].weight = model["a"].weight
    load_weights({"": model}, write(tmp_path, contents), CONFIG, device=CPU)
    assert model["a"].weight is model["b"].weight


def test_a_head_beside_the_decoder(tmp_path: Path) -> None:
    contents = tensors() | {"model.layers.1.norm.weight": torch.full((4,), 3.0)}
    model = meta_model()
    with torch.device("meta"):
        head = nn.ModuleDict({"1": nn.ModuleDict({"norm": Norm()}), "embed": model.model.embed_tokens})
    roots = {"": model, "model.layers": head}
    report = load_weights(roots, write(tmp_path, contents), CONFIG, device=CPU)
    assert torch.equal(head.get_parameter("1.norm.weight"), torch.full((4,), 3.0))
    assert report.mtp_unused == 0 and report.unexpected == ()


def test_wrong_shape_and_dtype(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"norm.weight has shape \[5\].*\[4\]"):
        misshapen = write(tmp_path, tensors() | {"model.layers.0.norm.weight": torch.ones(5)})
        load_weights({"": meta_model()}, misshapen, CONFIG, device=CPU)
    fp8 = {"model.layers.0.norm.weight": torch.ones(4).to(torch.float8_e4m3fn)}
    with pytest.raises(CheckpointError, match="float8_e4m3fn, where float32"):
        load_weights({"": meta_model()}, write(tmp_path, tensors() | fp8), CONFIG, device=CPU)


def test_a_module_that_forgets_is_named(tmp_path: Path) -> None:
    model = meta_model()
    model.model.register_buffer("table", torch.empty(3, device="meta"), persistent=False)
    with pytest.raises(PluginError, match=r"Inner left model.table on the meta device"):
        load_weights({"": model}, write(tmp_path, tensors()), CONFIG, device=CPU)

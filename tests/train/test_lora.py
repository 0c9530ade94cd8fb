"""Adapters: PEFT reads what is written, merging changes nothing, and only adapters learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dsv3rt_train import export, run
from dsv3rt_train.balance import LoadObserver
from dsv3rt_train.data.batches import Batches
from dsv3rt_train.data.documents import Corpus
from dsv3rt_train.loop import Trainer
from dsv3rt_train.lora import Adapter, LoraSettings, merge
from dsv3rt_train.model import adapters
from dsv3rt_train.model.build import TrainableModel, adapter_of, assemble, freeze_base, initialise, load_weights
from dsv3rt_train.settings import Settings
from torch import nn
from train_cases import TINY

from dsv3rt.config import ModelConfig
from dsv3rt.errors import CheckpointError, UsageError
from dsv3rt.interfaces import Site
from dsv3rt.plugin_manager import Plugins
from dsv3rt.runtime import load
from dsv3rt.weights.source import Checkpoint

LORA = LoraSettings(rank=3, alpha=6.0, targets=("q_b_proj", "kv_b_proj", "o_proj"))


@pytest.fixture
def base(tiny: tuple[TrainableModel, LoadObserver], tmp_path: Path) -> Path:
    export.write(tiny[0], tmp_path / "base", TINY, fp8=False)
    return tmp_path / "base"


@pytest.fixture
def adapted(base: Path, tiny_config: ModelConfig, plugins: Plugins) -> TrainableModel:
    """The base with adapters that do something."""
    model = assemble(tiny_config, plugins, lora=LORA)
    load_weights(model, Checkpoint(base), torch.device("cpu"))
    freeze_base(model, 0)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            nn.init.normal_(parameter, std=0.1)
    return model


def _logits(model: TrainableModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits, _ = model.decoder(ids, torch.arange(ids.shape[1]).expand_as(ids))
    return logits


IDS = torch.arange(5, 22)[None]


def test_peft_and_the_merged_checkpoint_say_the_same(
    adapted: TrainableModel, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins: Plugins
) -> None:
    from peft import PeftModel
    from transformers import DeepseekV3ForCausalLM

    adapter = adapter_of(adapted, LORA)
    main = {name: pair for name, pair in adapter.pairs.items() if ".layers.3." not in name}  # transformers has no MTP
    Adapter(LORA, main).save(tmp_path / "adapter", str(base))
    wanted = _logits(adapted, IDS)
    model: Any = DeepseekV3ForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = model.eval()(IDS).logits
    with torch.no_grad():
        got = PeftModel.from_pretrained(model, str(tmp_path / "adapter")).eval()(IDS).logits
    torch.testing.assert_close(got, wanted, atol=3e-5, rtol=1e-4)
    assert (got - before).abs().max() > 0.01

    monkeypatch.setattr(run, "discover", lambda *_: plugins)
    run.merge_adapter(base, tmp_path / "adapter", tmp_path / "merged", fp8=False)
    merged: Any = DeepseekV3ForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(merged.eval()(IDS).logits, wanted, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("fp8", [False, True])
def test_the_runtime_adds_an_adapter_to_any_storage_format(
    adapted: TrainableModel, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins: Plugins, fp8: bool
) -> None:
    monkeypatch.setattr(adapters, "discover", lambda **_: plugins)
    adapter_of(adapted, LORA).save(tmp_path / "adapter", str(base))
    if fp8:
        export.write(adapted, tmp_path / "base8", TINY, fp8=True)
        again = assemble(adapted.config, plugins, lora=LORA)
        load_weights(again, Checkpoint(tmp_path / "base8"), torch.device("cpu"))
        for (_, old), (_, new) in zip(adapted.named_parameters(), again.named_parameters(), strict=True):
            if old.requires_grad:
                new.data.copy_(old.data)
        adapted, base = again, tmp_path / "base8"
    chosen = f"lora:dir={tmp_path / 'adapter'}"
    runtime = load(base, plugins=plugins, compile="off", head="none", dtype="float32", quantization=chosen)
    got = runtime.logits(IDS[0].tolist())
    tolerance = 3e-2 if fp8 else 3e-5  # FP8 kernels round activations to bfloat16 pairs
    torch.testing.assert_close(got, _logits(adapted, IDS)[0], atol=tolerance, rtol=1e-3)


def test_only_adapters_learn(adapted: TrainableModel, corpus: Corpus, tmp_path: Path) -> None:
    before = {name: parameter.detach().clone() for name, parameter in adapted.named_parameters()}
    settings = Settings(
        steps=3, warmup=1, tokens=128, micro_batches=1, mtp_weight=0.0, mtp_weight_late=0.0, bias_speed=0.0
    )
    observer = LoadObserver(adapted.config)
    batches = Batches(corpus, tokens=128, micro_batches=1, seed=0, pad_id=2)
    trainer = Trainer(adapted, observer, batches, settings, tmp_path / "run")
    for _ in range(3):
        trainer.step()
    for name, parameter in adapted.named_parameters():
        learnt = not torch.equal(parameter, before[name])
        assert learnt == (name.endswith(("lora_A", "lora_B")) and ".layers.3." not in name), name


def test_a_fresh_adapter_changes_nothing(tiny_config: ModelConfig, plugins: Plugins) -> None:
    plain, fresh = assemble(tiny_config, plugins), assemble(tiny_config, plugins, lora=LORA)
    for model in (plain, fresh):
        initialise(model, 0)
    tensors = plain.official()
    for name, parameter in fresh.named_parameters():
        if "lora" not in name and ".mlp.experts." not in name:
            parameter.data.copy_(tensors[name.replace("base.weight", "weight")])
    for router, other in zip(plain.decoder.model.layers[1:], fresh.decoder.model.layers[1:], strict=True):
        other.mlp.experts.load_state_dict(router.mlp.experts.state_dict())  # type: ignore[union-attr]
    freeze_base(fresh, 1)
    torch.testing.assert_close(_logits(fresh, IDS), _logits(plain, IDS))
    assert set(fresh.official()) == set(tensors)


def test_refusals(tmp_path: Path, tiny_config: ModelConfig) -> None:
    with pytest.raises(CheckpointError, match="adapter_config"):
        Adapter.read(tmp_path)
    with pytest.raises(UsageError, match="experts"):
        LoraSettings(targets=("experts",))
    adapter = Adapter(LORA, {"model.layers.0.self_attn.o_proj": (torch.ones(3, 7), torch.ones(5, 3))})
    adapter.save(tmp_path, "base")
    read = Adapter.read(tmp_path)
    assert read.settings == LoraSettings(3, 6.0, ("o_proj",))
    with pytest.raises(CheckpointError, match="o_proj"):
        merge({"model.layers.0.self_attn.o_proj.weight": torch.ones(4, 4)}, read)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "use_dora": true, "r": 3, "lora_alpha": 6}')
    with pytest.raises(CheckpointError, match="use_dora"):
        Adapter.read(tmp_path)
    site = Site(tiny_config, 0, "", None, torch.float32, torch.float32, torch.device("cpu"))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="dir=FOLDER"):
        adapters.LoraQuantization(site)

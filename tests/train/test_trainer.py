"""The loop: it learns, it balances, and killed at any moment it goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dsv3rt_train import checkpointing, losses
from dsv3rt_train.balance import LoadObserver
from dsv3rt_train.data.batches import Batches, MicroBatch
from dsv3rt_train.data.documents import Corpus
from dsv3rt_train.loop import METRICS_FILE, Trainer
from dsv3rt_train.model.build import TrainableModel, assemble, freeze_main, initialise
from dsv3rt_train.settings import Settings

from dsv3rt.config import ModelConfig
from dsv3rt.errors import CheckpointError
from dsv3rt.plugin_manager import Plugins

SHORT = Settings(steps=12, warmup=3, lr=5e-3, tokens=256, micro_batches=2, mtp_share=0.5)
Start = Callable[[Path, Settings], Trainer]


@pytest.fixture
def start(tiny_config: ModelConfig, plugins: Plugins, corpus: Corpus) -> Start:
    def build(folder: Path, settings: Settings) -> Trainer:
        observer = LoadObserver(tiny_config)
        model = assemble(tiny_config, plugins, [observer], fp8=settings.fp8)
        initialise(model, settings.seed)
        batches = Batches(
            corpus, tokens=settings.tokens, micro_batches=settings.micro_batches, seed=settings.seed, pad_id=2
        )
        return Trainer(model, observer, batches, settings, folder)

    return build


def _losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / METRICS_FILE).read_text().splitlines()]


def _weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return trainer.model.official()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns_and_stays_balanced(start: Start, tmp_path: Path, optimizer: str) -> None:
    trainer = start(tmp_path, replace(SHORT, steps=80, optimizer=optimizer, lr=1e-2, bias_speed=0.01, mtp_share=1.0))
    trainer.run(save_every=80)
    lines = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert lines[-1]["mtp_loss"] < 0.6 * lines[0]["mtp_loss"]
    assert lines[-1]["mtp_agreement"] > 0.4
    assert len(lines[-1]["busiest"]) == 3  # two layers and the prediction module


def test_the_sequence_balance_loss_lessens_imbalance_within_sequences(start: Start, tmp_path: Path) -> None:
    """By itself: without bias updates, and heavy enough to be seen in a short run."""
    for name, weight in (("light", 1e-9), ("heavy", 0.3)):
        settings = replace(SHORT, steps=40, lr=1e-2, bias_speed=0.0, balance_weight=weight, mtp_share=1.0)
        start(tmp_path / name, settings).run(save_every=100)
    light, heavy = (
        [json.loads(line)["balance_loss"] for line in (tmp_path / name / METRICS_FILE).read_text().splitlines()]
        for name in ("light", "heavy")
    )
    assert heavy[0] == pytest.approx(light[0])
    assert sum(heavy[-10:]) < 0.97 * sum(light[-10:])


@pytest.mark.parametrize("numerics", ["bf16", "fp8"])
def test_rougher_numerics_learn_nearly_the_same(start: Start, tmp_path: Path, numerics: str) -> None:
    settings = replace(SHORT, steps=15)
    for name, chosen in (("float32", settings), ("rough", replace(settings, **{numerics: True}))):
        start(tmp_path / name, chosen).run(save_every=100)
    exact, rough = _losses(tmp_path / "float32"), _losses(tmp_path / "rough")
    assert exact != rough
    assert rough[-1] == pytest.approx(exact[-1], rel=0.02)


def test_stopped_and_resumed_equals_never_stopped(start: Start, tmp_path: Path) -> None:
    whole = start(tmp_path / "whole", SHORT)
    whole.run(save_every=100)
    first = start(tmp_path / "parts", SHORT)
    first.run(save_every=100, stop_at=5)
    first.step()  # lost with the process
    second = start(tmp_path / "parts", SHORT)
    assert second.next_step == 5
    second.run(save_every=100)
    for name, tensor in _weights(whole).items():
        assert torch.equal(tensor, _weights(second)[name]), name


@pytest.mark.slow
def test_compiled_steps_are_the_same_and_resume_exactly(start: Start, tmp_path: Path) -> None:
    start(tmp_path / "plain", SHORT).run(save_every=100)
    compiled = replace(SHORT, compile=True)
    whole = start(tmp_path / "whole", compiled)
    whole.run(save_every=100)
    assert _losses(tmp_path / "whole") == pytest.approx(_losses(tmp_path / "plain"), rel=1e-4)
    start(tmp_path / "parts", compiled).run(save_every=100, stop_at=5)
    resumed = start(tmp_path / "parts", compiled)
    resumed.run(save_every=100)
    assert all(torch.equal(tensor, _weights(resumed)[name]) for name, tensor in _weights(whole).items())


@pytest.mark.slow
def test_killed_three_times_equals_never_killed(start: Start, tmp_path: Path) -> None:
    settings = replace(SHORT, steps=30)
    start(tmp_path / "whole", settings).run(save_every=100)
    rng, folder, kills = random.Random(0), tmp_path / "killed", 0
    script = Path(__file__).with_name("child_trainer.py")
    deadline = time.monotonic() + 250
    for attempt in range(4):
        goal = (attempt + 1) * 6 + rng.randrange(3)
        child = subprocess.Popen([sys.executable, str(script), str(folder), str(settings.steps)], env=dict(os.environ))
        while child.poll() is None and attempt < 3:
            assert time.monotonic() < deadline
            path = folder / METRICS_FILE
            if path.is_file() and path.read_text().count("\n") >= goal:
                child.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(rng.random() * 0.02)
        child.wait()
    assert kills == 3 and child.returncode == 0
    assert _losses(folder) == _losses(tmp_path / "whole")


def test_another_run_in_the_same_folder_is_refused(start: Start, tmp_path: Path) -> None:
    trainer = start(tmp_path, SHORT)
    checkpointing.save(tmp_path, 3, trainer.model, trainer.optimizers, SHORT)
    with pytest.raises(CheckpointError, match="lr"):
        start(tmp_path, replace(SHORT, lr=1e-4))
    assert start(tmp_path, replace(SHORT, steps=20, tokens=512)).next_step == 3


def test_losses_ignore_padding_and_neighbours(start: Start, tmp_path: Path) -> None:
    """A document's loss is the same alone, beside others, and with more padding."""
    trainer = start(tmp_path, SHORT)
    documents = trainer.batches.corpus.lengths.argsort()[[3, 200, 399]]
    together = losses.compute(trainer.model, trainer.batches.collate(documents), None)
    apart = [losses.compute(trainer.model, trainer.batches.collate(documents[i : i + 1]), None) for i in range(3)]
    torch.testing.assert_close(together.next_sum, torch.stack([p.next_sum for p in apart]).sum(), rtol=1e-5, atol=1e-4)
    assert together.mtp_sum is not None
    singles = torch.stack([p.mtp_sum for p in apart if p.mtp_sum is not None]).sum()
    torch.testing.assert_close(together.mtp_sum, singles, rtol=1e-5, atol=1e-4)
    assert together.next_count == sum(p.next_count for p in apart)


def test_next_token_loss_is_the_plain_one(tiny: tuple[TrainableModel, LoadObserver]) -> None:
    model, _ = tiny
    ids = torch.randint(3, 90, (2, 9))
    batch = MicroBatch(ids, torch.ones_like(ids, dtype=torch.bool), torch.ones_like(ids, dtype=torch.bool))
    got = losses.compute(model, batch, None)
    logits, _ = model.decoder(ids, torch.arange(9).expand(2, 9))
    wanted = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(got.next_sum, wanted)
    assert (got.next_count, got.mtp_count, got.mtp_compared) == (16, 14, 14)


def test_drafts_are_compared_with_the_main_model(tiny: tuple[TrainableModel, LoadObserver]) -> None:
    """The first application agrees exactly where the usual objective says so; the second is one token further on."""
    model, _ = tiny
    ids = torch.randint(3, 90, (2, 11))
    learn = torch.rand(2, 11) < 0.7
    batch = MicroBatch(ids, learn, torch.ones_like(learn))
    usual = losses.compute(model, batch, None)
    part = losses.compute_drafts(model, batch, None, applications=2)
    assert (part.agrees[0], part.compared[0]) == (usual.mtp_agrees, usual.mtp_compared)
    assert part.compared[1] == int(learn[:, 3:].sum())
    once = losses.compute_drafts(model, batch, None, applications=1)
    assert part.total > once.total > 0


def test_training_drafts_leaves_the_main_model_alone(start: Start, tmp_path: Path) -> None:
    settings = replace(SHORT, steps=25, drafts=2, lr=1e-2, bias_speed=0.0, mtp_share=1.0)
    trainer = start(tmp_path, settings)
    freeze_main(trainer.model)
    before = {name: tensor.clone() for name, tensor in _weights(trainer).items()}
    trainer = Trainer(trainer.model, trainer.observer, trainer.batches, settings, tmp_path)
    trainer.run(save_every=100)
    changed = {name for name, tensor in _weights(trainer).items() if not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith("model.layers.3.") for name in changed)
    lines = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert len(lines[-1]["agreement_by_draft"]) == 2


def test_schedules() -> None:
    settings = Settings(steps=100, warmup=10, decay_share=0.3, final_lr=0.1, lr=1.0, bias_speed=0.001)
    assert settings.lr_at(0) == pytest.approx(0.1) and settings.lr_at(50) == 1.0
    assert settings.lr_at(69) == 1.0 and settings.lr_at(85) == pytest.approx(0.55)
    assert settings.mtp_weight_at(69) == 0.3 and settings.mtp_weight_at(70) == 0.1
    assert settings.bias_speed_at(89) == 0.001 and settings.bias_speed_at(90) == 0.0

"""Phase training: one step of the bundled model's shape, against the same step written the plain way with transformers.

Both: 16 documents of 96 tokens, every token learnt, float32, forward, backward, clipping and AdamW. The plain model
has no prediction module, so the trainer is timed without one for the comparison, and once more with it and Muon, as
the bundled checkpoint is trained; both plain and with `--compile`, whose first step (compiling) is `first_step_s`
(with `DSV3RT_BENCH_COMPILE=off` only plain).
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import dsv3rt_mla
import dsv3rt_moe
import dsv3rt_train
import numpy as np
import pytest
import torch
from dsv3rt_train.balance import LoadObserver
from dsv3rt_train.data.batches import Batches
from dsv3rt_train.data.documents import Corpus
from dsv3rt_train.loop import Trainer
from dsv3rt_train.model.build import assemble, initialise
from dsv3rt_train.recipe import CONFIG
from dsv3rt_train.settings import Settings
from measure import median_seconds

from dsv3rt.config import ModelConfig
from dsv3rt.plugin_manager import discover

DOCUMENTS, LENGTH = 16, 96


def _corpus() -> Corpus:
    rng = np.random.default_rng(0)
    count = DOCUMENTS * LENGTH * 64
    ids = rng.integers(6, CONFIG["vocab_size"], count, dtype=np.int32)
    return Corpus(ids, np.ones(count, np.bool_), np.arange(0, count + 1, LENGTH, dtype=np.int64))


def _trainer(folder: Path, **settings: Any) -> Trainer:
    known = {owner.source.split(": ")[-1] for owner in discover(warn=False).owners}
    plugins = discover([m for m in (dsv3rt_mla, dsv3rt_moe, dsv3rt_train) if m.__name__ not in known], warn=False)
    config = ModelConfig.from_dict(CONFIG)
    observer = LoadObserver(config)
    model = assemble(config, plugins, [observer])
    initialise(model, 0)
    batches = Batches(_corpus(), tokens=DOCUMENTS * LENGTH, micro_batches=1, seed=0, pad_id=2)
    return Trainer(
        model, observer, batches, Settings(steps=1000, tokens=DOCUMENTS * LENGTH, micro_batches=1, **settings), folder
    )


def _report(benchmark: Any) -> None:
    if (median := median_seconds(benchmark)) is not None:
        benchmark.extra_info["tokens_per_s"] = round(DOCUMENTS * LENGTH / median)


@pytest.mark.benchmark(group="train step")
def test_plain_transformers(benchmark: Any) -> None:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    torch.manual_seed(0)
    model: Any = DeepseekV3ForCausalLM(DeepseekV3Config(**{k: v for k, v in CONFIG.items() if k != "architectures"}))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.from_numpy(_corpus().ids[: DOCUMENTS * LENGTH].astype(np.int64)).view(DOCUMENTS, LENGTH)

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    benchmark.pedantic(step, rounds=8, warmup_rounds=2)
    _report(benchmark)


COMPILE = os.environ.get("DSV3RT_BENCH_COMPILE") != "off"
WAYS = pytest.mark.parametrize("compiled", [False, True] if COMPILE else [False])


def _time(benchmark: Any, trainer: Trainer) -> None:
    started = time.perf_counter()
    trainer.step()
    benchmark.extra_info["first_step_s"] = round(time.perf_counter() - started, 1)
    benchmark.pedantic(trainer.step, rounds=8, warmup_rounds=1)
    _report(benchmark)


@pytest.mark.benchmark(group="train step")
@WAYS
def test_dsv3rt(benchmark: Any, tmp_path: Path, compiled: bool) -> None:
    _time(benchmark, _trainer(tmp_path, optimizer="adamw", mtp_weight=0.0, mtp_weight_late=0.0, compile=compiled))


@pytest.mark.benchmark(group="train step")
@WAYS
def test_dsv3rt_with_mtp_and_muon(benchmark: Any, tmp_path: Path, compiled: bool) -> None:
    _time(benchmark, _trainer(tmp_path, compile=compiled))

"""A tiny model with everything on, and a corpus of sums for it."""

from __future__ import annotations

import random
from types import ModuleType

import dsv3rt_fp8
import dsv3rt_mla
import dsv3rt_moe
import dsv3rt_train
import numpy as np
import pytest
import torch
from dsv3rt_train.balance import LoadObserver
from dsv3rt_train.data.documents import Corpus
from dsv3rt_train.model.build import TrainableModel, assemble, initialise
from train_cases import TINY

from dsv3rt.config import ModelConfig
from dsv3rt.plugin_manager import Plugins, discover


@pytest.fixture(scope="session")
def plugins() -> Plugins:
    modules: list[ModuleType] = [dsv3rt_mla, dsv3rt_moe, dsv3rt_fp8, dsv3rt_train]
    found = discover([], warn=False)
    known = {owner.source.split(": ")[-1] for owner in found.owners}
    return discover([m for m in modules if m.__name__ not in known], warn=False)


@pytest.fixture
def tiny_config() -> ModelConfig:
    return ModelConfig.from_dict(TINY)


@pytest.fixture
def tiny(tiny_config: ModelConfig, plugins: Plugins) -> tuple[TrainableModel, LoadObserver]:
    torch.manual_seed(0)
    observer = LoadObserver(tiny_config)
    model = assemble(tiny_config, plugins, [observer])
    initialise(model, 0)
    return model, observer


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return make_corpus()


def make_corpus() -> Corpus:
    """Counting upwards from a random token, by one or by two: easy to learn."""
    rng = random.Random(0)
    documents = []
    for _ in range(400):
        start, by, length = rng.randrange(3, 40), rng.choice((1, 2)), rng.randrange(6, 24)
        documents.append([0, *(start + by * i for i in range(length)), 1])
    offsets = np.concatenate([[0], np.cumsum([len(d) for d in documents])])
    ids = np.concatenate([np.asarray(d, np.int32) for d in documents])
    return Corpus(ids, ids != 0, offsets)

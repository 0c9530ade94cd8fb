"""A training run in a process of its own, to be killed: child_trainer.py FOLDER STEPS (saves after every step)."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import dsv3rt_fp8
import dsv3rt_mla
import dsv3rt_moe
import dsv3rt_train
import torch
from conftest import make_corpus
from dsv3rt_train.balance import LoadObserver
from dsv3rt_train.data.batches import Batches
from dsv3rt_train.loop import Trainer
from dsv3rt_train.model.build import assemble, initialise
from test_trainer import SHORT
from train_cases import TINY

from dsv3rt.config import ModelConfig
from dsv3rt.plugin_manager import discover


def main() -> None:
    torch.set_num_threads(1)
    modules = [dsv3rt_mla, dsv3rt_moe, dsv3rt_fp8, dsv3rt_train]
    known = {owner.source.split(": ")[-1] for owner in discover([], warn=False).owners}
    plugins = discover([m for m in modules if m.__name__ not in known], warn=False)
    settings = replace(SHORT, steps=int(sys.argv[2]))
    config = ModelConfig.from_dict(TINY)
    observer = LoadObserver(config)
    model = assemble(config, plugins, [observer])
    initialise(model, settings.seed)
    batches = Batches(
        make_corpus(), tokens=settings.tokens, micro_batches=settings.micro_batches, seed=settings.seed, pad_id=2
    )
    Trainer(model, observer, batches, settings, Path(sys.argv[1])).run(save_every=1)


if __name__ == "__main__":
    main()

"""Saving and restoring everything a run needs to go on as if it had never stopped.

A save is written beside the old one and renamed over it: whenever the process dies, one whole save is there.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsv3rt.errors import CheckpointError
from dsv3rt_train.model.build import TrainableModel
from dsv3rt_train.settings import Settings

FILE = "resume.pt"
MAY_CHANGE = frozenset(
    {"steps", "decay_share", "final_lr", "tokens", "micro_batches", "mtp_weight", "mtp_weight_late", "mtp_share"}
)
"""Settings that a resumed run may change, for training in stages: they concern the steps to come alone."""


def save(
    folder: Path, step: int, model: TrainableModel, optimizers: list[torch.optim.Optimizer], settings: Settings
) -> None:
    """`step`: the next step to take."""
    state = {
        "step": step,
        "settings": asdict(settings),
        "parameters": dict(model.named_parameters()),
        "buffers": {layer: _persistent(router) for layer, router in model.routers().items()},
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{FILE}.{os.getpid()}.tmp"
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / FILE)


def restore(folder: Path, model: TrainableModel, optimizers: list[torch.optim.Optimizer], settings: Settings) -> int:
    """Returns the next step to take: 0 when nothing was saved. Raises CheckpointError if the run was a different
    one."""
    path = folder / FILE
    if not path.is_file():
        return 0
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    changed = sorted(
        key
        for key, value in asdict(settings).items()
        if key not in MAY_CHANGE and state["settings"].get(key, value) != value
    )
    parameters = dict(model.named_parameters())
    if {k: v.shape for k, v in parameters.items()} != {k: v.shape for k, v in state["parameters"].items()}:
        changed.append("the model's shape")
    if changed:
        raise CheckpointError(
            f"{path} belongs to a run with other settings: {', '.join(changed)}", fix="use another output folder"
        )
    _copy(state, model)
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])


def read_weights(folder: Path, model: TrainableModel) -> int:
    """Only the weights of the save in `folder`. Returns the step they are of."""
    state: dict[str, Any] = torch.load(folder / FILE, map_location="cpu", weights_only=True, mmap=True)
    _copy(state, model)
    return int(state["step"])


@torch.no_grad()
def _copy(state: dict[str, Any], model: TrainableModel) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(state["parameters"][name])
    for layer, router in model.routers().items():
        for name, buffer in _persistent(router).items():
            buffer.copy_(state["buffers"][layer][name])


def _persistent(router: nn.Module) -> dict[str, Tensor]:
    return {name: buffer for name, buffer in router.named_buffers() if name not in router._non_persistent_buffers_set}

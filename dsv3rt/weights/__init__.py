"""Checkpoints in: safetensors by official name, memory-mapped, into the assembled modules.

The public names are imported when first used: finding a folder must not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsv3rt.weights.loader import LoadReport, load_weights
    from dsv3rt.weights.locate import locate
    from dsv3rt.weights.prefault import Progress
    from dsv3rt.weights.source import Checkpoint

__all__ = ["Checkpoint", "LoadReport", "Progress", "load_weights", "locate"]


def __getattr__(name: str) -> Any:
    places = {
        "Checkpoint": "source",
        "LoadReport": "loader",
        "Progress": "prefault",
        "load_weights": "loader",
        "locate": "locate",
    }
    if name not in places:
        raise AttributeError(f"module 'dsv3rt.weights' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"dsv3rt.weights.{places[name]}"), name)
    globals()[name] = value  # the submodule `locate` would otherwise hide the function
    return value

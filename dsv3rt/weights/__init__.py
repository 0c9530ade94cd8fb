"""Checkpoints in: safetensors by official name, memory-mapped, into the assembled modules."""

from __future__ import annotations

from dsv3rt.weights.loader import LoadReport, Progress, load_weights
from dsv3rt.weights.locate import locate
from dsv3rt.weights.source import Checkpoint

__all__ = ["Checkpoint", "LoadReport", "Progress", "load_weights", "locate"]

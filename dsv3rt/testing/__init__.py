"""For tests and plugin authors: random checkpoints in the official layout."""

from __future__ import annotations

from dsv3rt.testing.presets import PRESETS, preset
from dsv3rt.testing.synth import random_checkpoint

__all__ = ["PRESETS", "preset", "random_checkpoint"]

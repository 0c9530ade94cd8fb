"""For tests and plugin authors: contract checks, and random checkpoints in the official layout."""

from __future__ import annotations

from dsv3rt.testing.contracts import check_attention, check_quantization, check_router
from dsv3rt.testing.presets import PRESETS, preset
from dsv3rt.testing.statistics import chi_square
from dsv3rt.testing.synth import random_checkpoint

__all__ = [
    "PRESETS",
    "check_attention",
    "check_quantization",
    "check_router",
    "chi_square",
    "preset",
    "random_checkpoint",
]

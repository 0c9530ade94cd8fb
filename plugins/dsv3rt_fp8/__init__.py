"""Quantization slot: `fp8_block` and `dense` storage, with native CPU kernels."""

from __future__ import annotations

from collections.abc import Callable

from dsv3rt import hookimpl
from dsv3rt.interfaces import QuantizationBuilder
from dsv3rt_fp8.quantization import BlockFP8, Dense


@hookimpl
def register_quantization(register: Callable[[str, QuantizationBuilder], None]) -> None:
    register("dense", Dense)
    register("fp8_block", BlockFP8)

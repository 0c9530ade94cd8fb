"""Quantization slot: the storage formats and their kernels."""

from __future__ import annotations

from collections.abc import Callable

from dsv3rt import hookimpl
from dsv3rt.interfaces import QuantizationBuilder
from dsv3rt_fp8.plain import PlainQuantization


@hookimpl
def register_quantization(register: Callable[[str, QuantizationBuilder], None]) -> None:
    register("dense", PlainQuantization)
    register("fp8_block", PlainQuantization)

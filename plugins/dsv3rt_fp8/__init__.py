"""Quantization slot: `fp8_block` and `dense` storage, with native CPU kernels; and the command `dsv3rt quantize`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dsv3rt import hookimpl
from dsv3rt.interfaces import QuantizationBuilder
from dsv3rt_fp8.quantization import BlockFP8, Dense

if TYPE_CHECKING:
    import click


@hookimpl
def register_quantization(register: Callable[[str, QuantizationBuilder], None]) -> None:
    register("dense", Dense)
    register("fp8_block", BlockFP8)


@hookimpl
def register_commands(cli: click.Group) -> None:
    from dsv3rt_fp8.command import command

    cli.add_command(command)

"""Training: the `train` matrices, the learning prediction module, and `dsv3rt train` / `dsv3rt eval`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dsv3rt import hookimpl

if TYPE_CHECKING:
    import click
    from torch import nn

    from dsv3rt.interfaces import HeadBuilder, HeadSite, Quantization, QuantizationBuilder, Site


def _train_quantization(site: Site) -> Quantization:
    from dsv3rt_train.model.matrices import TrainQuantization

    return TrainQuantization(site)


def _trainable_head(site: HeadSite) -> nn.Module:
    from dsv3rt_train.model.prediction import TrainableHead

    return TrainableHead(site)


def _lora_quantization(site: Site) -> Quantization:
    from dsv3rt_train.model.adapters import LoraQuantization

    return LoraQuantization(site)


@hookimpl
def register_quantization(register: Callable[[str, QuantizationBuilder], None]) -> None:
    register("train", _train_quantization)
    register("lora", _lora_quantization)


@hookimpl
def register_head(register: Callable[[str, HeadBuilder], None]) -> None:
    register("mtp_train", _trainable_head)


@hookimpl
def register_commands(cli: click.Group) -> None:
    from dsv3rt_train.commands import evaluate, train

    cli.add_command(train.command)
    cli.add_command(evaluate.command)

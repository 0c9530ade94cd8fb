"""Quantization slot `train`: float32 master weights with gradients, rounded as `Numerics` says where they are used."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsv3rt.errors import CheckpointError, UsageError
from dsv3rt.interfaces import Site, TensorSource
from dsv3rt_train.lora import LoraSettings
from dsv3rt_train.model.adapters import LearningAdapter
from dsv3rt_train.model.experts import TrainableExperts
from dsv3rt_train.model.numerics import Numerics

UNQUANTIZED = ("lm_head", "eh_proj")
"""Matrices that official FP8 checkpoints keep in bfloat16 (the last part of their names)."""


def read_float32(source: TensorSource, name: str, shape: tuple[int, int]) -> Tensor:
    """The matrix in float32, dequantized if it is block-FP8 (value = weight x scale_inv)."""
    weight = source.get(f"{name}.weight", shape=shape)
    if weight.dtype != torch.float8_e4m3fn:
        return weight.float()
    if f"{name}.weight_scale_inv" not in source:
        raise CheckpointError(f"{name}.weight is FP8 but {name}.weight_scale_inv is missing", fix="download it again")
    scale = source.get(f"{name}.weight_scale_inv", shape=(-(-shape[0] // 128), -(-shape[1] // 128))).float()
    return weight.float() * scale.repeat_interleave(128, 0)[: shape[0]].repeat_interleave(128, 1)[:, : shape[1]]


class TrainableLinear(nn.Module):
    """y = x W^T (+ b)."""

    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, numerics: Numerics, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.numerics = numerics

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.numerics.activation(x), self.numerics.weight(self.weight), self.bias)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return self.numerics.weight(self.weight).to(dtype)

    def load_tensors(self, source: TensorSource, prefix: str, device: torch.device) -> None:
        rows, columns = self.weight.shape
        self.weight = nn.Parameter(read_float32(source, prefix, (rows, columns)).to(device))
        if self.bias is not None:
            self.bias = nn.Parameter(source.get(f"{prefix}.bias", shape=(rows,)).float().to(device))


class TrainQuantization:
    """`train` (options numerics=float32|fp8; lora=RANK, alpha=NUMBER, targets=NAME+NAME+...)."""

    name = "train"

    def __init__(self, site: Site) -> None:
        kind, rank = site.options.get("numerics", "float32"), site.options.get("lora", "")
        alpha, targets = site.options.get("alpha", "16"), site.options.get("targets", "")
        if kind not in ("float32", "fp8"):
            raise UsageError(f"quantization train does not know {dict(site.options)}", fix="numerics=float32 or fp8")
        self.numerics = Numerics(fp8=kind == "fp8")
        self.lora: LoraSettings | None = None
        if rank:
            chosen = tuple(targets.split("+")) if targets else LoraSettings().targets
            self.lora = LoraSettings(int(rank), float(alpha), chosen)

    def linear(self, in_features: int, out_features: int, *, prefix: str, bias: bool = False) -> nn.Module:
        plain = prefix.rsplit(".", 1)[-1] in UNQUANTIZED
        linear = TrainableLinear(in_features, out_features, Numerics() if plain else self.numerics, bias=bias)
        if self.lora is None or not self.lora.adapts(prefix):
            return linear
        return LearningAdapter(linear, in_features, out_features, self.lora)

    def experts(self, num_experts: int, hidden: int, intermediate: int, *, prefix: str) -> nn.Module:
        return TrainableExperts(num_experts, hidden, intermediate, self.numerics)

    def describe(self, device: torch.device) -> str:
        return f"torch, float32 master weights, {'FP8 rounding' if self.numerics.fp8 else 'no rounding'}"

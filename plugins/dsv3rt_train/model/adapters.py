"""Matrices with low-rank adapters: learning over a frozen base, and beside any storage format at run time.

Legend: r rank; A [r, in], B [out, r].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsv3rt.errors import CheckpointError, UsageError
from dsv3rt.interfaces import Quantization, Site, TensorSource, packing_of
from dsv3rt.plugin_manager import discover
from dsv3rt_train.lora import Adapter, LoraSettings


class LearningAdapter(nn.Module):
    """y = base(x) + scale (x A^T) B^T, the base frozen."""

    def __init__(self, base: nn.Module, in_features: int, out_features: int, settings: LoraSettings) -> None:
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(torch.empty(settings.rank, in_features))
        self.lora_B = nn.Parameter(torch.empty(out_features, settings.rank))
        self.scale = settings.scale

    def load_tensors(self, source: TensorSource, prefix: str, device: torch.device) -> None:
        self.base.load_tensors(source, prefix, device)  # type: ignore[operator]

    def start(self, rng: torch.Generator) -> None:
        """A random, B zero: the model begins as its base."""
        with torch.no_grad():
            bound = 1 / math.sqrt(self.lora_A.shape[1])
            self.lora_A.copy_(torch.empty(self.lora_A.shape).uniform_(-bound, bound, generator=rng))
            self.lora_B.zero_()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y + F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        base: Tensor = self.base.dequantized(torch.float32)  # type: ignore[operator]
        return (base + self.scale * self.lora_B @ self.lora_A).to(dtype)


class AdaptedLinear(nn.Module):
    """A matrix of any storage format with a fixed adapter beside it."""

    def __init__(self, base: nn.Module, a: Tensor, b: Tensor, scale: float) -> None:
        super().__init__()
        self.base = base
        self.pair = (a, b)
        self.scale = scale
        self.register_buffer("lora_A", torch.empty(a.shape), persistent=False)
        self.register_buffer("lora_B", torch.empty(b.shape), persistent=False)

    def load_tensors(self, source: TensorSource, prefix: str, device: torch.device) -> None:
        self.base.load_tensors(source, prefix, device)  # type: ignore[operator]
        a, b = self.pair
        self.lora_A = a.float().to(device)
        self.lora_B = (self.scale * b.float()).to(device)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y + F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        base: Tensor = self.base.dequantized(torch.float32)  # type: ignore[operator]
        return (base + self.lora_B @ self.lora_A).to(dtype)


class LoraQuantization:
    """`lora:dir=FOLDER[,base=NAME]`: the storage format NAME (default: the checkpoint's own) with an adapter added."""

    def __init__(self, site: Site) -> None:
        folder, base = site.options.get("dir", ""), site.options.get("base", "")
        if not folder:
            raise UsageError("quantization lora needs dir=FOLDER", fix="write lora:dir=FOLDER[,base=NAME]")
        name = base or ("fp8_block" if site.config.quantization else "dense")
        inner = Site(site.config, site.layer, site.prefix, site.quantization, site.dtype, site.cache_dtype, site.device)
        self.base: Quantization = discover(warn=False).find("quantization", name).builder(inner)
        self.adapter = Adapter.read(Path(folder))
        self.name = f"{self.base.name}+lora"

    def linear(self, in_features: int, out_features: int, *, prefix: str, bias: bool = False) -> nn.Module:
        base = self.base.linear(in_features, out_features, prefix=prefix, bias=bias)
        pair = self.adapter.pairs.get(prefix)
        if pair is None:
            return base
        if pair[0].shape[1] != in_features or pair[1].shape[0] != out_features:
            raise CheckpointError(f"the adapter's {prefix} has another shape", fix="use the base it was trained on")
        return AdaptedLinear(base, *pair, self.adapter.settings.scale)

    def experts(self, num_experts: int, hidden: int, intermediate: int, *, prefix: str) -> nn.Module:
        return self.base.experts(num_experts, hidden, intermediate, prefix=prefix)

    def describe(self, device: torch.device) -> str:
        return f"{self.base.describe(device)}, {len(self.adapter.pairs)} matrices with LoRA"

    # -- interfaces.PacksWeights, where the format offers it

    def pack(self, roots: Sequence[nn.Module]) -> None:
        packing_of(self.base).pack(roots)

    def packed(self, timeout_s: float | None = None) -> bool:
        return packing_of(self.base).packed(timeout_s)

    def expected_share(self, weight_bytes: int, bf16_bytes: int, device: torch.device) -> float:
        return packing_of(self.base).expected_share(weight_bytes, bf16_bytes, device)

    def saved_bytes_per_token(self, model: nn.Module) -> int:
        return packing_of(self.base).saved_bytes_per_token(model)

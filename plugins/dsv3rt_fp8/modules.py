"""A matrix and a feed-forward network, in whatever format the checkpoint stores them.

On the CPU weights stay where they lie in the mapped file, and native kernels compute from there in float32. Where
gradients are wanted, and where there are no native kernels, plain torch computes the same.

Legend: N outputs, K inputs, D hidden, F intermediate, `...` any leading dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsv3rt.errors import CheckpointError
from dsv3rt.interfaces import TensorSource
from dsv3rt_fp8 import gpu, native_ops, numerics

DENSE = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Storage:
    """How a quantization wants its matrices kept and used."""

    dtype: torch.dtype
    """Activations' dtype; parameters that no checkpoint fills have it too."""
    round_input: Callable[[Tensor], Tensor] | None = None
    """Applied to the input of products with FP8 weights (W8A8 numerics)."""
    ue8m0: bool = False
    """Scales of activations, where they are rounded, are powers of two."""
    check_nan: bool = True
    """Look for NaN codes while loading (reads the weights once)."""


def wants_grad(*tensors: Tensor) -> bool:
    """Whether autograd has to see a product of these."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def read_weight(
    source: TensorSource, prefix: str, shape: tuple[int, int], storage: Storage
) -> tuple[Tensor, Tensor | None]:
    """(weight, scales or None) of the matrix `prefix` as they lie in the checkpoint. Raises CheckpointError."""
    name, scale_name = f"{prefix}.weight", f"{prefix}.weight_scale_inv"
    weight = source.get(name, shape=shape)
    if weight.dtype in DENSE:
        return weight, None
    if weight.dtype != torch.float8_e4m3fn:
        kind = str(weight.dtype).removeprefix("torch.")
        raise CheckpointError(f"{name} is stored as {kind}", fix="known: float8_e4m3fn, bfloat16, float16, float32")
    if scale_name not in source:
        raise CheckpointError(f"{name} is FP8 but {scale_name} is missing", fix="download the checkpoint again")
    scale = source.get(scale_name, shape=numerics.grid(*shape)).float()
    if not bool(torch.isfinite(scale).all()):
        raise CheckpointError(f"{scale_name} holds NaN or infinity", fix="download the checkpoint again")
    if storage.check_nan and native_ops.has_nan(weight):
        raise CheckpointError(f"{name} holds NaN", fix="download the checkpoint again")
    return weight, scale


class Linear(nn.Module):
    """y = x W^T (+ b). Parameters `weight`, `bias`; with FP8 storage also the buffer `weight_scale_inv`.

    The buffer `packed` is there where packing.py makes a copy of the weight that is read faster. Who writes into the
    weight of a loaded model calls `eval()` (or `train()`) afterwards: from then on the copy is not read any more.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    weight_scale_inv: Tensor | None
    packed: Tensor | None

    def __init__(self, in_features: int, out_features: int, storage: Storage, *, bias: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.storage = storage
        self.native = False
        self.block_scaled = False
        self.packable = True
        """Whether products of few tokens are computed here, so that a packed copy would be read."""
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=storage.dtype))
        self.bias = nn.Parameter(torch.empty(out_features, dtype=storage.dtype)) if bias else None
        self.register_buffer("weight_scale_inv", None)
        self.register_buffer("packed", None, persistent=False)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {str(self.weight.dtype).removeprefix('torch.')}"

    def load_tensors(self, source: TensorSource, prefix: str, device: torch.device) -> None:
        """Take weight, scales and bias; on the CPU without a copy."""
        self.discard_packed()
        self.packed = None
        weight, scale = read_weight(source, prefix, (self.out_features, self.in_features), self.storage)
        if scale is None and device.type != "cpu":
            weight = weight.to(self.storage.dtype)
        self.weight = nn.Parameter(weight.to(device), requires_grad=False)
        self.weight_scale_inv = None if scale is None else scale.to(device)
        if self.bias is not None:
            stored = source.get(f"{prefix}.bias", shape=(self.out_features,))
            self.bias = nn.Parameter(stored.to(device, self.storage.dtype), requires_grad=False)
        self.choose_kernel()

    def choose_kernel(self) -> None:
        """Decide how to compute, from where the weight is now."""
        self.native = native_ops.native_on(self.weight.device) and self.weight.is_contiguous()
        self.block_scaled = self.weight_scale_inv is not None and gpu.fits_block_scaled_mm(self.weight)

    def discard_packed(self) -> None:
        """The weight may change: whoever has the packed copy, a compiled graph too, reads the weight from now on."""
        if self.packed is not None:
            native_ops.discard_packed(self.packed)

    def train(self, mode: bool = True) -> Linear:
        super().train(mode)
        self.discard_packed()
        if not mode:
            self.choose_kernel()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Linear:
        self.discard_packed()
        self.packed = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        self.discard_packed()
        super()._load_from_state_dict(*args)

    def for_gradients(self, *tensors: Tensor) -> bool:
        """Whether autograd has to see a product of these with the weight. One that can have a gradient can change."""
        if self.weight.requires_grad and not torch.compiler.is_compiling():
            self.discard_packed()
        return wants_grad(*tensors, self.weight)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The values [N, K] in `dtype`."""
        if self.weight_scale_inv is None:
            return self.weight.to(dtype)
        return numerics.dequantize(self.weight, self.weight_scale_inv, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N] in the dtype of x."""
        scale = self.weight_scale_inv
        if scale is not None and self.storage.round_input is not None:
            x = self.storage.round_input(x)
        if self.native and not self.for_gradients(x):
            rows = x.float().contiguous()
            if self.packed is not None:
                y = torch.ops.dsv3rt.packed_linear(rows, self.weight, self.packed)
            elif scale is None:
                y = torch.ops.dsv3rt.dense_linear(rows, self.weight)
            else:
                y = torch.ops.dsv3rt.fp8_linear(rows, self.weight, scale)
            y = y.to(x.dtype)
        elif self.block_scaled and scale is not None and not self.for_gradients(x):
            y = gpu.block_scaled_mm(x, self.weight, scale, ue8m0=self.storage.ue8m0)
        else:
            y = F.linear(x, self.dequantized(x.dtype))
        result: Tensor = y if self.bias is None else y + self.bias.to(x.dtype)
        return result


class FeedForward(nn.Module):
    """down(silu(gate x) * (up x)), in one call of a native kernel where possible."""

    def __init__(self, hidden: int, intermediate: int, storage: Storage) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden, intermediate, storage)
        self.up_proj = Linear(hidden, intermediate, storage)
        self.down_proj = Linear(intermediate, hidden, storage)

    def _fusible(self, x: Tensor) -> bool:
        gate, up, down = self.gate_proj, self.up_proj, self.down_proj
        if not (gate.native and up.native and down.native) or gate.storage.round_input is not None:
            return False
        if not gate.weight.dtype == up.weight.dtype == down.weight.dtype:
            return False
        return not any(matrix.for_gradients(x) for matrix in (gate, up, down))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        gate, up, down = self.gate_proj, self.up_proj, self.down_proj
        if not self._fusible(x):
            y: Tensor = down(F.silu(gate(x)) * up(x))
            return y
        rows = x.float().contiguous()
        if gate.packed is not None and up.packed is not None and down.packed is not None:
            pairs = [(m.weight, m.packed) for m in (gate, up, down)]
            y = torch.ops.dsv3rt.packed_ffn(rows, *(tensor for pair in pairs for tensor in pair))
        elif gate.weight_scale_inv is None:
            y = torch.ops.dsv3rt.dense_ffn(rows, gate.weight, up.weight, down.weight)
        else:
            scaled = [(m.weight, m.weight_scale_inv) for m in (gate, up, down)]
            y = torch.ops.dsv3rt.fp8_ffn(rows, *(tensor for pair in scaled for tensor in pair))
        return y.to(x.dtype)

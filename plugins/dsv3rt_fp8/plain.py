"""Matrices through plain torch: any stored format, block-FP8 dequantized on loading.

Legend: N tokens, D hidden, F expert hidden, E experts, K chosen experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsv3rt.errors import CheckpointError
from dsv3rt.interfaces import Site, TensorSource


def read_matrix(source: TensorSource, name: str, shape: tuple[int, int]) -> Tensor:
    """The matrix as stored, or, when it is block-FP8, dequantized to bfloat16 (value = weight x scale_inv)."""
    weight = source.get(f"{name}.weight", shape=shape)
    if weight.dtype != torch.float8_e4m3fn:
        return weight
    if f"{name}.weight_scale_inv" not in source:
        raise CheckpointError(f"{name}.weight is FP8 but {name}.weight_scale_inv is missing", fix="download it again")
    rows, columns = -(-shape[0] // 128), -(-shape[1] // 128)
    scale = source.get(f"{name}.weight_scale_inv", shape=(rows, columns)).float()
    scale = scale.repeat_interleave(128, 0)[: shape[0]].repeat_interleave(128, 1)[:, : shape[1]]
    return weight.float() * scale


class PlainLinear(nn.Module):
    """y = x W^T (+ b)."""

    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def load_tensors(self, source: TensorSource, prefix: str, device: torch.device) -> None:
        shape = (self.weight.shape[0], self.weight.shape[1])
        self.weight = nn.Parameter(read_matrix(source, prefix, shape).to(device), requires_grad=False)
        if self.bias is not None:
            self.bias = nn.Parameter(source.get(f"{prefix}.bias", shape=(shape[0],)).to(device), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return self.weight.to(dtype)


class PlainExperts(nn.Module):
    """All experts over all tokens, weighted by zero where not chosen: slow, exact, and without a graph break."""

    def __init__(self, experts: int, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = nn.Parameter(torch.empty(experts, intermediate, hidden))
        self.up_proj = nn.Parameter(torch.empty(experts, intermediate, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, intermediate))

    def load_tensors(self, source: TensorSource, prefix: str, device: torch.device) -> None:
        for name in ("gate_proj", "up_proj", "down_proj"):
            experts, rows, columns = getattr(self, name).shape
            stacked = [read_matrix(source, f"{prefix}.{e}.{name}", (rows, columns)) for e in range(experts)]
            setattr(self, name, nn.Parameter(torch.stack(stacked).to(device), requires_grad=False))

    def forward(self, x_ND: Tensor, weights_NK: Tensor, ids_NK: Tensor) -> Tensor:
        dense_NE = torch.zeros(x_ND.shape[0], self.gate_proj.shape[0], dtype=weights_NK.dtype, device=x_ND.device)
        dense_NE = dense_NE.scatter(1, ids_NK, weights_NK)
        gate = torch.einsum("nd,efd->enf", x_ND, self.gate_proj.to(x_ND.dtype))
        up = torch.einsum("nd,efd->enf", x_ND, self.up_proj.to(x_ND.dtype))
        y_ENF = F.silu(gate) * up
        y_END = torch.einsum("enf,edf->end", y_ENF, self.down_proj.to(x_ND.dtype))
        return torch.einsum("end,ne->nd", y_END, dense_NE.to(x_ND.dtype))


class PlainQuantization:
    """Storage format `dense`: matrices as stored, products by torch."""

    name = "dense"

    def __init__(self, site: Site) -> None:
        del site

    def linear(self, in_features: int, out_features: int, *, prefix: str, bias: bool = False) -> nn.Module:
        return PlainLinear(in_features, out_features, bias=bias)

    def experts(self, num_experts: int, hidden: int, intermediate: int, *, prefix: str) -> nn.Module:
        return PlainExperts(num_experts, hidden, intermediate)

    def weight_bytes(self, in_features: int, out_features: int, *, prefix: str) -> int:
        return in_features * out_features * 2

    def describe(self, device: torch.device) -> str:
        return "torch"

"""RMSNorm (V3 report, section 2.1; official `RMSNorm` in inference/model.py)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsv3rt import native


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight, computed in float32; returns x's dtype.

    A row's result does not depend on the others.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return native.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
        """(x + more, the norm of that) in one pass."""
        return native.add_rms_norm(x, more, self.weight, self.eps)

"""How products round while training: plain, or as FP8 would (straight-through quantize-dequantize).

Source: V3 report, section 3.3: activations in tiles of 1x128, weights in blocks of 128x128, e4m3 with float32 scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_TILE = 128
_E4M3_MAX = 448.0


def quantize_dequantize(x: Tensor, rows: int, columns: int) -> Tensor:
    """x [..., R, C] rounded to e4m3 with one scale per block of `rows` x `columns`; ragged edges make smaller
    blocks."""
    r, c = x.shape[-2], x.shape[-1]
    padded = torch.nn.functional.pad(x, (0, -c % columns, 0, -r % rows))
    blocks = padded.unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows))
    scale = blocks.abs().amax(dim=(-3, -1), keepdim=True).clamp_min(1e-12) / _E4M3_MAX
    rounded = (blocks / scale).to(torch.float8_e4m3fn).to(x.dtype) * scale
    result: Tensor = rounded.flatten(-4, -3).flatten(-2, -1)[..., :r, :c]
    return result


class _StraightThrough(torch.autograd.Function):
    """Rounds on the way forward, passes the gradient as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: int, columns: int) -> Tensor:
        return quantize_dequantize(x, rows, columns)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return dy, None, None


@dataclass(frozen=True)
class Numerics:
    """Rounding of the operands of every quantized product."""

    fp8: bool = False

    def weight(self, w: Tensor) -> Tensor:
        """w [..., out, in] as the product sees it."""
        if not self.fp8:
            return w
        y: Tensor = _StraightThrough.apply(w, _TILE, _TILE)  # type: ignore[no-untyped-call]
        return y

    def activation(self, x: Tensor) -> Tensor:
        """x [..., in] as the product sees it."""
        if not self.fp8:
            return x
        y: Tensor = _StraightThrough.apply(x.reshape(-1, x.shape[-1]), 1, _TILE)  # type: ignore[no-untyped-call]
        return y.view_as(x)

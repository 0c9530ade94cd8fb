"""Block FP8 in plain torch: what the stored numbers mean, and how the official code makes them.

value = weight x scale_inv, one scale for 128 x 128 (V3 report, section 3.3; kernel.py of the official inference code).
Legend: N rows, K columns, n = ceil(N/128), k = ceil(K/128), `...` any leading dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 128
E4M3_MAX = 448.0


def grid(rows: int, columns: int) -> tuple[int, int]:
    """Shape of the scales of a [rows, columns] matrix."""
    return -(-rows // BLOCK), -(-columns // BLOCK)


def spread(scale_nk: Tensor, rows: int, columns: int) -> Tensor:
    """Scales [n, k] -> one for every value [rows, columns]."""
    return scale_nk.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]


def dequantize(weight_NK: Tensor, scale_nk: Tensor, dtype: torch.dtype) -> Tensor:
    """The values [N, K] in `dtype`, multiplied in float32."""
    return (weight_NK.float() * spread(scale_nk.float(), *weight_NK.shape)).to(dtype)


def quantize_weight(weight_NK: Tensor, *, ue8m0: bool = False) -> tuple[Tensor, Tensor]:
    """Values -> (e4m3 [N, K], scale_inv float32 [n, k]), as the official converter does.

    `ue8m0` rounds scales up to powers of two. Raises ValueError on NaN or infinity.
    """
    rows, columns = weight_NK.shape
    n, k = grid(rows, columns)
    values = F.pad(weight_NK.float(), (0, k * BLOCK - columns, 0, n * BLOCK - rows)).view(n, BLOCK, k, BLOCK)
    peak_nk = values.abs().amax(dim=(1, 3))
    if not bool(torch.isfinite(peak_nk).all()):
        raise ValueError("the weight holds NaN or infinity")
    scale_nk = torch.where(peak_nk > 0, peak_nk / E4M3_MAX, torch.ones_like(peak_nk))
    if ue8m0:
        scale_nk = torch.exp2(torch.ceil(torch.log2(scale_nk)))
    codes = (values / scale_nk[:, None, :, None]).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    codes_NK = codes.view(n * BLOCK, k * BLOCK)[:rows, :columns].contiguous()
    return codes_NK, scale_nk


def quantize_activations(x: Tensor, *, ue8m0: bool) -> tuple[Tensor, Tensor]:
    """x [..., K] -> (e4m3 [..., K], scale float32 [..., k]): dynamic scales for 1 x 128 values (official act_quant).

    `ue8m0` rounds scales up to powers of two (V3.1 on, `scale_fmt`).
    """
    columns = x.shape[-1]
    k = -(-columns // BLOCK)
    values = F.pad(x.float(), (0, k * BLOCK - columns)).unflatten(-1, (k, BLOCK))
    peak = values.abs().amax(-1).clamp(min=1e-4)
    scale = peak / E4M3_MAX
    if ue8m0:
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    codes = (values / scale.unsqueeze(-1)).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return codes.flatten(-2)[..., :columns], scale


def round_activations(x: Tensor, *, ue8m0: bool) -> Tensor:
    """x as it looks after `quantize_activations` and back, in its own dtype: what W8A8 products see."""
    codes, scale = quantize_activations(x, ue8m0=ue8m0)
    return (codes.float() * scale.repeat_interleave(BLOCK, -1)[..., : x.shape[-1]]).to(x.dtype)

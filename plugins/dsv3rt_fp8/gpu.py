"""Products on a GPU, of torch's own parts: block-scaled matmul where the device has it, dequantizing (which the
compiler fuses) elsewhere; experts stacked on the device, gathered for a few tokens and grouped for many.

The block-scaled matmul rounds its input to e4m3 with a scale for 1 x 128 values, as the official code does. cuBLAS has
it for compute capability 9.0; whether this build of torch does is found out by trying it on a small product.

Legend: N outputs, K inputs, T tokens, D hidden, F expert hidden, E experts, k chosen experts of a token, P = T*k pairs,
`...` any leading dimensions.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F_

from dsv3rt_fp8 import numerics

BLOCK_SCALED = (9, 0)


def block_scaled_mm(x: Tensor, weight_NK: Tensor, scale_nk: Tensor, *, ue8m0: bool) -> Tensor:
    """x [..., K] -> [..., N] in the dtype of x, by `scaled_mm`. K must divide by 128 and N by 16."""
    from torch.nn.functional import ScalingType, scaled_mm

    codes, scale = numerics.quantize_activations(x.reshape(-1, x.shape[-1]), ue8m0=ue8m0)
    blocks = scale_nk.shape[1]
    padded = F_.pad(scale_nk, (0, -blocks % 4))  # cuBLAS wants the columns' scales in fours
    y = scaled_mm(
        codes,
        weight_NK.t(),
        scale.t().contiguous().t(),
        ScalingType.BlockWise1x128,
        padded.t(),
        ScalingType.BlockWise128x128,
        output_dtype=torch.bfloat16,
    )
    return y.view(*x.shape[:-1], -1).to(x.dtype)


@functools.cache
def has_block_scaled_mm(device: torch.device) -> bool:
    """Whether `block_scaled_mm` works on `device` and means what it should."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != BLOCK_SCALED:
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 640, generator=generator).to(device)
    codes, scale = numerics.quantize_weight(torch.randn(384, 640, generator=generator))
    codes, scale = codes.to(device), (scale * torch.arange(1, 16).view(3, 5)).to(device)
    expected = x @ numerics.dequantize(codes, scale, torch.float32).T
    try:
        y = block_scaled_mm(x, codes, scale, ue8m0=False)
    except (RuntimeError, ValueError, AttributeError):
        return False
    return bool((y - expected).norm() < 0.06 * expected.norm())


def fits_block_scaled_mm(weight_NK: Tensor) -> bool:
    """Whether this matrix can take that way."""
    rows, columns = weight_NK.shape
    return columns % 128 == 0 and rows % 16 == 0 and has_block_scaled_mm(weight_NK.device)


class Stack:
    """One projection of all experts on the device: values [E, N, K], and scales [E, n, k] when they are e4m3."""

    def __init__(self, values_ENK: Tensor, scale_Enk: Tensor | None) -> None:
        self.values_ENK, self.scale_Enk = values_ENK, scale_Enk

    def chosen(self, ids_P: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Those of some experts [P, N, K], or of all, in `dtype`."""
        values, scale = self.values_ENK, self.scale_Enk
        if ids_P is not None:
            if values.dtype == torch.float8_e4m3fn:  # gathered as bytes: not every device can gather e4m3
                values = values.view(torch.uint8).index_select(0, ids_P).view(torch.float8_e4m3fn)
            else:
                values = values.index_select(0, ids_P)
            scale = None if scale is None else scale.index_select(0, ids_P)
        if scale is None:
            return values.to(dtype)
        rows, columns = values.shape[1:]
        wide = scale.repeat_interleave(numerics.BLOCK, 1)[:, :rows].repeat_interleave(numerics.BLOCK, 2)[..., :columns]
        return (values.float() * wide).to(dtype)


def experts(x_TD: Tensor, weights_Tk: Tensor, ids_Tk: Tensor, gate: Stack, up: Stack, down: Stack) -> Tensor:
    """y = sum_k weights[:, k] * FFN_{ids[:, k]}(x) -> [T, D]; shapes do not depend on the data."""
    pairs, count = ids_Tk.numel(), gate.values_ENK.shape[0]
    way = _gathered if pairs < count else _grouped
    y_PD = way(x_TD, ids_Tk, gate, up, down)
    weighted = y_PD.view(*ids_Tk.shape, -1).float() * weights_Tk.unsqueeze(-1)
    return weighted.sum(1).to(x_TD.dtype)


def _gathered(x_TD: Tensor, ids_Tk: Tensor, gate: Stack, up: Stack, down: Stack) -> Tensor:
    """Few pairs: each with its own copy of its expert's weights, which alone are read."""
    ids_P, dtype = ids_Tk.flatten(), x_TD.dtype
    x_PD1 = x_TD.repeat_interleave(ids_Tk.shape[1], 0).unsqueeze(-1)
    h_PF1 = F_.silu(gate.chosen(ids_P, dtype) @ x_PD1) * (up.chosen(ids_P, dtype) @ x_PD1)
    return (down.chosen(ids_P, dtype) @ h_PF1).squeeze(-1)


def _grouped(x_TD: Tensor, ids_Tk: Tensor, gate: Stack, up: Stack, down: Stack) -> Tensor:
    """Many pairs: sorted by expert, one grouped product for each projection."""
    ids_P, dtype = ids_Tk.flatten(), x_TD.dtype
    order_P = ids_P.argsort(stable=True)
    experts_E1 = torch.arange(gate.values_ENK.shape[0], device=ids_P.device).unsqueeze(1)
    ends_E = (ids_P == experts_E1).sum(1).cumsum(0).to(torch.int32)
    x_PD = x_TD.index_select(0, order_P // ids_Tk.shape[1])

    def product(rows: Tensor, stack: Stack) -> Tensor:
        return F_.grouped_mm(rows, stack.chosen(None, dtype).transpose(1, 2), offs=ends_E)

    y_PD = product(F_.silu(product(x_PD, gate)) * product(x_PD, up), down)
    return torch.empty_like(y_PD).index_copy(0, order_P, y_PD)

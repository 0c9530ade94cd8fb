"""Routed experts that learn: tokens sorted by expert, one dense product per expert, gradients written by hand.

Legend: N tokens, D hidden, E experts, K chosen experts, I expert hidden, M = N*K rows sorted by expert.

Autograd through a loop over experts would slice, scatter and add thousands of small tensors a step. Here every
product writes straight
into its part of one tensor, and what backward needs is kept once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dsv3rt.interfaces import TensorSource
from dsv3rt_train.model.numerics import Numerics


class _Grouped(torch.autograd.Function):
    """y_n = sum_k w_nk down_e(silu(gate_e x_n) * up_e x_n), e = ids_nk."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weights_NK: Tensor, ids_NK: Tensor, gate_up_EJD: Tensor, down_EDI: Tensor
    ) -> Tensor:
        tokens, k = ids_NK.shape
        experts, width = gate_up_EJD.shape[0], down_EDI.shape[2]
        order_M = ids_NK.reshape(-1).argsort(stable=True)
        bounds = torch.bincount(ids_NK.reshape(-1), minlength=experts).cumsum(0).tolist()
        row_M = order_M // k
        x_MD = x_ND.index_select(0, row_M)
        h_MJ = x_MD.new_empty(tokens * k, 2 * width)
        y_MD = torch.empty_like(x_MD)
        start = 0
        for e, stop in enumerate(bounds):
            torch.mm(x_MD[start:stop], gate_up_EJD[e].t(), out=h_MJ[start:stop])
            start = stop
        gate_MI, up_MI = h_MJ[:, :width], h_MJ[:, width:]
        w_M1 = weights_NK.reshape(-1).index_select(0, order_M).to(x_ND.dtype)[:, None]
        a_MI = torch.nn.functional.silu(gate_MI).mul_(up_MI)
        scaled_MI = a_MI * w_M1
        start = 0
        for e, stop in enumerate(bounds):
            torch.mm(scaled_MI[start:stop], down_EDI[e].t(), out=y_MD[start:stop])
            start = stop
        place_M = torch.empty_like(order_M)
        place_M[order_M] = torch.arange(order_M.numel(), device=order_M.device)
        y_ND = y_MD.index_select(0, place_M).view(tokens, k, -1).sum(1)
        ctx.save_for_backward(x_MD, h_MJ, scaled_MI, w_M1, row_M, place_M, gate_up_EJD, down_EDI)
        ctx.bounds, ctx.k = bounds, k
        return y_ND

    @staticmethod
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor, Tensor, None, Tensor, Tensor]:
        x_MD, h_MJ, scaled_MI, w_M1, row_M, place_M, gate_up_EJD, down_EDI = ctx.saved_tensors
        width = down_EDI.shape[2]
        dy_MD = dy_ND.index_select(0, row_M)
        dscaled_MI = torch.empty_like(scaled_MI)
        dgate_up_EJD, ddown_EDI = torch.empty_like(gate_up_EJD), torch.empty_like(down_EDI)
        start = 0
        for e, stop in enumerate(ctx.bounds):
            torch.mm(dy_MD[start:stop], down_EDI[e], out=dscaled_MI[start:stop])
            torch.mm(dy_MD[start:stop].t(), scaled_MI[start:stop], out=ddown_EDI[e])
            start = stop
        gate_MI, up_MI = h_MJ[:, :width], h_MJ[:, width:]
        sigmoid_MI = gate_MI.sigmoid()
        silu_MI = gate_MI * sigmoid_MI
        dw_M = (dscaled_MI * silu_MI * up_MI).sum(-1)
        da_MI = dscaled_MI.mul_(w_M1)
        dh_MJ = torch.empty_like(h_MJ)
        torch.mul(da_MI, silu_MI, out=dh_MJ[:, width:])
        # d silu(g)/dg = s + silu (1 - s)
        torch.mul(da_MI * up_MI, sigmoid_MI + silu_MI - silu_MI * sigmoid_MI, out=dh_MJ[:, :width])
        dx_MD = dy_MD  # its values are no longer needed
        start = 0
        for e, stop in enumerate(ctx.bounds):
            torch.mm(dh_MJ[start:stop].t(), x_MD[start:stop], out=dgate_up_EJD[e])
            torch.mm(dh_MJ[start:stop], gate_up_EJD[e], out=dx_MD[start:stop])
            start = stop
        dx_ND = dx_MD.index_select(0, place_M).view(-1, ctx.k, dx_MD.shape[1]).sum(1)
        dw_NK = dw_M.index_select(0, place_M).view(-1, ctx.k)
        return dx_ND, dw_NK, None, dgate_up_EJD, ddown_EDI


class TrainableExperts(nn.Module):
    """A layer's routed experts as two stacked parameters."""

    def __init__(self, experts: int, hidden: int, intermediate: int, numerics: Numerics) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * intermediate, hidden))
        self.down = nn.Parameter(torch.empty(experts, hidden, intermediate))
        self.numerics = numerics

    def forward(self, x_ND: Tensor, weights_NK: Tensor, ids_NK: Tensor) -> Tensor:
        gate_up, down = self.numerics.weight(self.gate_up), self.numerics.weight(self.down)
        x_ND = self.numerics.activation(x_ND)
        if torch.is_autocast_enabled(x_ND.device.type):
            dtype = torch.get_autocast_dtype(x_ND.device.type)
            x_ND, gate_up, down = x_ND.to(dtype), gate_up.to(dtype), down.to(dtype)
        y_ND: Tensor = _Grouped.apply(x_ND, weights_NK, ids_NK, gate_up, down)  # type: ignore[no-untyped-call]
        return y_ND

    def official(self) -> dict[str, Tensor]:
        """The matrices by the official names, relative to this module."""
        width = self.down.shape[2]
        named: dict[str, Tensor] = {}
        for e in range(self.down.shape[0]):
            named[f"{e}.gate_proj.weight"] = self.gate_up[e, :width]
            named[f"{e}.up_proj.weight"] = self.gate_up[e, width:]
            named[f"{e}.down_proj.weight"] = self.down[e]
        return named

    def load_tensors(self, source: TensorSource, prefix: str, device: torch.device) -> None:
        from dsv3rt_train.model.matrices import read_float32

        experts, hidden, width = self.down.shape

        def read(e: int, name: str, rows: int, columns: int) -> Tensor:
            return read_float32(source, f"{prefix}.{e}.{name}", (rows, columns))

        gate_up = [
            torch.cat([read(e, "gate_proj", width, hidden), read(e, "up_proj", width, hidden)]) for e in range(experts)
        ]
        self.gate_up = nn.Parameter(torch.stack(gate_up).to(device))
        self.down = nn.Parameter(torch.stack([read(e, "down_proj", hidden, width) for e in range(experts)]).to(device))

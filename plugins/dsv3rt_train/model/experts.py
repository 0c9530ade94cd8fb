"""Routed experts that learn: tokens sorted by expert, one dense product per expert, gradients written by hand.

Legend: N tokens, D hidden, E experts, K chosen experts, I expert hidden, M = N*K rows sorted by expert.

Autograd through a loop over experts would slice, scatter and add thousands of small tensors a step. Here every
product writes straight into its part of one tensor, and what backward needs is kept once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dsv3rt.interfaces import TensorSource
from dsv3rt_train.model.numerics import Numerics


def _forward(
    x_ND: Tensor, weights_NK: Tensor, ids_NK: Tensor, gate_up_EJD: Tensor, down_EDI: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y_n = sum_k w_nk down_e(silu(gate_e x_n) * up_e x_n), e = ids_nk; and what `_backward` needs of it."""
    tokens, k = ids_NK.shape
    experts, width = gate_up_EJD.shape[0], down_EDI.shape[2]
    order_M = ids_NK.reshape(-1).argsort(stable=True)
    stops_E = torch.bincount(ids_NK.reshape(-1), minlength=experts).cumsum(0)
    row_M = order_M // k
    x_MD = x_ND.index_select(0, row_M)
    h_MJ = x_MD.new_empty(tokens * k, 2 * width)
    y_MD = torch.empty_like(x_MD)
    for e, part in _parts(stops_E):
        torch.mm(x_MD[part], gate_up_EJD[e].t(), out=h_MJ[part])
    gate_MI, up_MI = h_MJ[:, :width], h_MJ[:, width:]
    w_M1 = weights_NK.reshape(-1).index_select(0, order_M).to(x_ND.dtype)[:, None]
    scaled_MI = torch.nn.functional.silu(gate_MI).mul_(up_MI).mul_(w_M1)
    for e, part in _parts(stops_E):
        torch.mm(scaled_MI[part], down_EDI[e].t(), out=y_MD[part])
    place_M = torch.empty_like(order_M)
    place_M[order_M] = torch.arange(order_M.numel(), device=order_M.device)
    y_ND = y_MD.index_select(0, place_M).view(tokens, k, -1).sum(1)
    return y_ND, x_MD, h_MJ, scaled_MI, w_M1, row_M, place_M, stops_E


def _backward(
    dy_ND: Tensor,
    x_MD: Tensor,
    h_MJ: Tensor,
    scaled_MI: Tensor,
    w_M1: Tensor,
    row_M: Tensor,
    place_M: Tensor,
    stops_E: Tensor,
    gate_up_EJD: Tensor,
    down_EDI: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, weights, gate_up and down."""
    tokens, width = dy_ND.shape[0], down_EDI.shape[2]
    dy_MD = dy_ND.index_select(0, row_M)
    dscaled_MI = torch.empty_like(scaled_MI)
    dgate_up_EJD, ddown_EDI = torch.empty_like(gate_up_EJD), torch.empty_like(down_EDI)
    for e, part in _parts(stops_E):
        torch.mm(dy_MD[part], down_EDI[e], out=dscaled_MI[part])
        torch.mm(dy_MD[part].t(), scaled_MI[part], out=ddown_EDI[e])
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
    for e, part in _parts(stops_E):
        torch.mm(dh_MJ[part].t(), x_MD[part], out=dgate_up_EJD[e])
        torch.mm(dh_MJ[part], gate_up_EJD[e], out=dx_MD[part])
    dx_ND = dx_MD.index_select(0, place_M).view(tokens, -1, dx_MD.shape[1]).sum(1)
    return dx_ND, dw_M.index_select(0, place_M).view(tokens, -1), dgate_up_EJD, ddown_EDI


def _parts(stops_E: Tensor) -> Iterator[tuple[int, slice]]:
    """Every expert with its rows."""
    start = 0
    for e, stop in enumerate(stops_E.tolist()):
        yield e, slice(start, stop)
        start = stop


def _fake_forward(
    x_ND: Tensor, weights_NK: Tensor, ids_NK: Tensor, gate_up_EJD: Tensor, down_EDI: Tensor
) -> tuple[Tensor, ...]:
    rows, width = ids_NK.numel(), down_EDI.shape[2]
    shapes = ((rows, x_ND.shape[1]), (rows, 2 * width), (rows, width), (rows, 1))
    indices = (ids_NK.new_empty(rows), ids_NK.new_empty(rows), ids_NK.new_empty(gate_up_EJD.shape[0]))
    return (x_ND.new_empty(x_ND.shape), *(x_ND.new_empty(shape) for shape in shapes), *indices)


def _fake_backward(dy_ND: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
    x_MD, gate_up_EJD, down_EDI = saved[0], saved[-2], saved[-1]
    tokens = dy_ND.shape[0]
    dw_NK = dy_ND.new_empty(tokens, x_MD.shape[0] // tokens)
    return dy_ND.new_empty(dy_ND.shape), dw_NK, torch.empty_like(gate_up_EJD), torch.empty_like(down_EDI)


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:], *inputs[3:])


def _differentiate(ctx: Any, dy_ND: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    dx_ND, dw_NK, dgate_up_EJD, ddown_EDI = torch.ops.dsv3rt.train_experts_backward(
        dy_ND.contiguous(), *ctx.saved_tensors
    )
    return dx_ND, dw_NK, None, dgate_up_EJD, ddown_EDI


def _define(name: str, function: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """An operator, which torch.compile takes as one node: what is in it depends on how many tokens each expert gets."""
    torch.library.define(name, torch.library.infer_schema(function, mutates_args=()))
    torch.library.impl(name, "CompositeExplicitAutograd", function)
    torch.library.register_fake(name, fake)


_define("dsv3rt::train_experts", _forward, _fake_forward)
_define("dsv3rt::train_experts_backward", _backward, _fake_backward)
torch.library.register_autograd("dsv3rt::train_experts", _differentiate, setup_context=_setup)


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
        y_ND: Tensor = torch.ops.dsv3rt.train_experts(x_ND, weights_NK, ids_NK, gate_up, down)[0]
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

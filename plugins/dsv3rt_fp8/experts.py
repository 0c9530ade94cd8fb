"""The routed experts of one layer, as the checkpoint stores them: one small network each, never stacked on the CPU.

Legend: N tokens, D hidden, F expert hidden, E experts, K chosen experts of a token.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsv3rt.errors import CheckpointError
from dsv3rt.interfaces import TensorSource
from dsv3rt_fp8 import gpu, native_ops
from dsv3rt_fp8.modules import FeedForward, Linear, Storage, wants_grad

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class Experts(nn.Module):
    """y = sum_k weights[:, k] * FFN_{ids[:, k]}(x). Children are named "0", "1", .. as in the checkpoint."""

    table: Tensor | None

    def __init__(self, experts: int, hidden: int, intermediate: int, storage: Storage) -> None:
        super().__init__()
        self.hidden, self.intermediate, self.storage = hidden, intermediate, storage
        self.count = experts
        for expert in range(experts):
            self.add_module(str(expert), FeedForward(hidden, intermediate, storage))
        self.format = -1
        self.stacks: tuple[gpu.Stack, gpu.Stack, gpu.Stack] | None = None
        self.register_buffer("table", None, persistent=False)

    def extra_repr(self) -> str:
        return f"{self.count} x ({self.hidden}, {self.intermediate})"

    def expert(self, index: int) -> FeedForward:
        child = self.get_submodule(str(index))
        assert isinstance(child, FeedForward)
        return child

    def matrices(self, projection: str) -> list[Linear]:
        """One projection of all experts, in order."""
        return [getattr(self.expert(index), projection) for index in range(self.count)]

    def load_tensors(self, source: TensorSource, prefix: str, device: torch.device) -> None:
        """Take every expert's tensors; on the CPU without a copy."""
        for index in range(self.count):
            for projection in PROJECTIONS:
                matrix: Linear = getattr(self.expert(index), projection)
                matrix.load_tensors(source, f"{prefix}.{index}.{projection}", device)
        formats = {matrix.weight.dtype for projection in PROJECTIONS for matrix in self.matrices(projection)}
        if len(formats) > 1:
            names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in formats))
            raise CheckpointError(
                f"{prefix}: experts are stored in several formats ({names})", fix="convert them to one"
            )
        self.bind()

    def bind(self) -> None:
        """Note where the weights and their packed copies lie now, for the native kernel; without one, nothing.

        Must be called again after the weights' memory has changed (not their values): `eval()` and `to()` do it.
        """
        first = self.expert(0).gate_proj.weight
        self.table, self.stacks = None, None
        if first.device.type == "cuda" and not first.requires_grad:
            gate, up, down = (self._stack(self.matrices(projection)) for projection in PROJECTIONS)
            self.stacks = gate, up, down
        if not native_ops.native_on(first.device):
            return
        columns = [self.matrices(projection) for projection in PROJECTIONS]
        if any(not m.weight.is_contiguous() or m.weight.dtype != first.dtype for column in columns for m in column):
            return
        self.format = native_ops.FORMATS[first.dtype]
        addresses = [
            [[_address(tensor) for tensor in (m.weight, m.weight_scale_inv, m.packed)] for m in trio]
            for trio in zip(*columns, strict=True)
        ]
        self.table = torch.tensor(addresses, dtype=torch.int64)

    @staticmethod
    def _stack(matrices: list[Linear]) -> gpu.Stack:
        """All of one projection in one tensor, of which the experts' own parameters become views: nothing is kept
        twice."""
        values = torch.stack([matrix.weight.data for matrix in matrices])
        found = [matrix.weight_scale_inv for matrix in matrices]
        scales = [scale for scale in found if scale is not None]
        stacked = torch.stack(scales) if scales else None
        for index, matrix in enumerate(matrices):
            matrix.weight = nn.Parameter(values[index], requires_grad=False)
            if stacked is not None:
                matrix.weight_scale_inv = stacked[index]
        return gpu.Stack(values, stacked)

    def train(self, mode: bool = True) -> Experts:
        super().train(mode)
        if not mode:
            self.bind()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Experts:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.bind()
        return self

    def forward(self, x_ND: Tensor, weights_NK: Tensor, ids_NK: Tensor) -> Tensor:
        """x [N, D], weights [N, K] float32, ids [N, K] int64 -> [N, D] in the dtype of x."""
        if wants_grad(x_ND, weights_NK, self.expert(0).gate_proj.weight):
            return self._plain(x_ND, weights_NK, ids_NK)
        if self.stacks is not None:
            return gpu.experts(x_ND, weights_NK, ids_NK, *self.stacks)
        if self.table is None:
            return self._plain(x_ND, weights_NK, ids_NK)
        if self.format == 0 and self.storage.round_input is not None:
            return self._plain(x_ND, weights_NK, ids_NK)
        y_ND: Tensor = torch.ops.dsv3rt.experts(
            x_ND.float().contiguous(),
            weights_NK.float().contiguous(),
            ids_NK.contiguous(),
            self.table,
            self.intermediate,
            self.format,
        )
        return y_ND.to(x_ND.dtype)

    def _plain(self, x_ND: Tensor, weights_NK: Tensor, ids_NK: Tensor) -> Tensor:
        """The same in torch: every expert over the tokens that chose it, or, under the compiler, over all of them."""
        y_ND = torch.zeros_like(x_ND)
        compiling = torch.compiler.is_compiling()
        for index in range(self.count):
            chosen_NK = ids_NK == index
            weight_N = (weights_NK * chosen_NK).sum(-1).to(x_ND.dtype)
            if compiling:
                y_ND = y_ND + self._one(index, x_ND) * weight_N.unsqueeze(-1)
                continue
            rows = chosen_NK.any(-1).nonzero().squeeze(-1)
            if rows.numel():
                y = self._one(index, x_ND.index_select(0, rows)) * weight_N.index_select(0, rows).unsqueeze(-1)
                y_ND = y_ND.index_add(0, rows, y)
        return y_ND

    def _one(self, index: int, x_ND: Tensor) -> Tensor:
        expert = self.expert(index)
        y: Tensor = expert.down_proj(F.silu(expert.gate_proj(x_ND)) * expert.up_proj(x_ND))
        return y

"""Matrices as a checkpoint would hold them, for the tests of this folder.

Legend: N rows, K columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dsv3rt.errors import CheckpointError


def e4m3_value(code: int) -> float:
    """What an e4m3 code means, from the definition of the format (no infinities; 0x7f and 0xff are NaN)."""
    sign, exponent, mantissa = -1.0 if code & 0x80 else 1.0, code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    return sign * (mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10))


VALUES = torch.tensor([e4m3_value(code) for code in range(256)], dtype=torch.float64)
FINITE = torch.tensor([code for code in range(256) if code & 0x7F != 0x7F], dtype=torch.uint8)


def random_codes(rows: int, columns: int) -> Tensor:
    """Every finite code is as likely as any other: e4m3 [N, K]."""
    return FINITE[torch.randint(len(FINITE), (rows, columns))].view(torch.float8_e4m3fn)


def random_scales(rows: int, columns: int) -> Tensor:
    """float32 [ceil(N/128), ceil(K/128)] over a few orders of magnitude."""
    return torch.exp(torch.randn(-(-rows // 128), -(-columns // 128)) * 2 - 4)


def exact(codes: Tensor, scale: Tensor) -> Tensor:
    """float64 values of a stored matrix, by way of `e4m3_value`."""
    rows, columns = codes.shape
    values = VALUES[codes.view(torch.uint8).long()]
    wide = scale.double()[torch.arange(rows) // 128][:, torch.arange(columns) // 128]
    return values * wide


def unaligned(tensor: Tensor) -> Tensor:
    """The same tensor at an odd address, as a memory-mapped file may give it."""
    room = torch.zeros(tensor.nbytes + 16, dtype=torch.uint8)
    odd = room[3 : 3 + tensor.nbytes]
    odd.copy_(tensor.contiguous().view(torch.uint8).flatten())
    moved = torch.frombuffer(memoryview(room.numpy())[3 : 3 + tensor.nbytes], dtype=tensor.dtype).view(tensor.shape)
    assert moved.data_ptr() % 2 == 1
    return moved


class Stored:
    """A TensorSource over a dictionary."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def names(self) -> Sequence[str]:
        return tuple(self.tensors)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def get(self, name: str, *, shape: Sequence[int] | None = None) -> Tensor:
        if name not in self.tensors:
            raise CheckpointError(f"{name} is missing")
        tensor = self.tensors[name]
        if shape is not None and tuple(tensor.shape) != tuple(shape):
            raise CheckpointError(f"{name} has shape {tuple(tensor.shape)}, not {tuple(shape)}")
        return tensor


def stored_fp8(name: str, rows: int, columns: int, *, odd: bool = False) -> dict[str, Tensor]:
    """The two tensors of an FP8 matrix."""
    codes, scale = random_codes(rows, columns), random_scales(rows, columns)
    place = unaligned if odd else lambda tensor: tensor
    return {f"{name}.weight": place(codes), f"{name}.weight_scale_inv": place(scale)}


def value_of(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """float64 values of the matrix `name` among stored tensors."""
    weight, scale = tensors[f"{name}.weight"], tensors.get(f"{name}.weight_scale_inv")
    return weight.double() if scale is None else exact(weight, scale)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Distance over length."""
    return float((actual.double() - expected).norm() / expected.norm().clamp(min=1e-300))


def same(y: Tensor, plain: Tensor) -> bool:
    """Bit for bit, the sign of a zero too. What a NaN was made of does not count."""
    y, plain = (torch.where(value.isnan(), torch.nan, value) for value in (y, plain))
    return torch.equal(y.view(torch.int32), plain.view(torch.int32))

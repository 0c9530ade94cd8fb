"""The plugin's native operators (csrc/), their shapes for the compiler, and what they need to know.

Legend: N outputs of a matrix, K inputs, T tokens, D hidden, F expert hidden, E experts.

    fp8_linear(x [..., K], weight e4m3 [N, K], scale_inv float32 [ceil(N/128), ceil(K/128)]) -> [..., N]
    dense_linear(x [..., K], weight float32|bfloat16|float16 [N, K]) -> [..., N]
    fp8_ffn, dense_ffn(x [..., D], gate, up [F, D], down [D, F]) -> [..., D]
    experts(x [T, D], weights [T, k], ids [T, k], table [E, 3, 2], F, format) -> [T, D]

x is contiguous float32. `table` holds addresses: (weight, scales or 0) of gate, up and down of each expert; the tensors
must outlive it. A token's result is bitwise the same whatever is computed beside it, up to 16 tokens in all. With FP8
on AMD's processors with AVX2 (`avx2amd`) activations are multiplied by 2^64 on their way: none may exceed 1.8e19.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from dsv3rt.native import NativeLibrary, load_library

FORMATS = {torch.float8_e4m3fn: 0, torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}
"""Stored dtype -> the number by which the operators know it."""


@functools.cache
def library() -> NativeLibrary | None:
    """The native library, or None where it cannot be built."""
    loaded = load_library("fp8", Path(__file__).parent / "csrc")
    if loaded is not None:
        loaded.c.dsv3rt_has_nan.argtypes = (ctypes.c_void_p, ctypes.c_int64)
        loaded.c.dsv3rt_has_nan.restype = ctypes.c_int
        fake = torch.library.register_fake
        fake("dsv3rt::fp8_linear", lambda x, weight, scale_inv: x.new_empty((*x.shape[:-1], weight.shape[0])))
        fake("dsv3rt::dense_linear", lambda x, weight: x.new_empty((*x.shape[:-1], weight.shape[0])))
        fake("dsv3rt::dense_ffn", lambda x, gate, up, down: x.new_empty(x.shape))
        fake("dsv3rt::fp8_ffn", lambda x, gate, gate_s, up, up_s, down, down_s: x.new_empty(x.shape))
        fake("dsv3rt::experts", lambda x, weights, ids, table, intermediate, format: x.new_empty(x.shape))
    return loaded


def native_on(device: torch.device) -> bool:
    """Whether native kernels compute on `device`."""
    return device.type == "cpu" and library() is not None


def has_nan(codes: Tensor) -> bool:
    """Whether a contiguous e4m3 tensor on the CPU holds a NaN code (0x7f, 0xff). Reads it once, at memory's speed."""
    native = library()
    if native is not None:
        return bool(native.c.dsv3rt_has_nan(codes.data_ptr(), codes.numel()))
    return bool(((codes.view(torch.uint8) & 0x7F) == 0x7F).any())

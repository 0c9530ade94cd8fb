"""The core's operators: RMS norm, the greatest of a row, and the machine's read bandwidth.

Legend: T rows, D row size, K greatest; `...` any leading dimensions.
"""

from __future__ import annotations

import ctypes
import functools
import time
from pathlib import Path

import torch
from torch import Tensor

from dsv3rt.native.loader import NativeLibrary, load_library


@functools.cache
def core_library() -> NativeLibrary | None:
    """The core's native library, or None where it cannot be built."""
    library = load_library("core", Path(__file__).parent / "csrc")
    if library is not None:
        library.c.dsv3rt_read.argtypes = (ctypes.c_void_p, ctypes.c_int64)
        library.c.dsv3rt_read.restype = ctypes.c_uint64
        torch.library.register_fake("dsv3rt::rms_norm", _fake_rms_norm)
        torch.library.register_fake("dsv3rt::add_rms_norm", _fake_add_rms_norm)
        torch.library.register_fake("dsv3rt::greatest", _fake_greatest)
        torch.library.register_fake("dsv3rt::draw_draft", _fake_draw_draft)
        torch.library.register_fake("dsv3rt::settle_drafts", _fake_settle_drafts)
    return library


def _fake_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


def _fake_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _fake_greatest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return x.new_empty((x.shape[0], k)), x.new_empty((x.shape[0], k), dtype=torch.int64)


def _fake_draw_draft(logits: Tensor, rule: Tensor, uniform: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    rows = logits.shape[0]
    ids = logits.new_empty((rows, k), dtype=torch.int64)
    return logits.new_empty(rows, dtype=torch.int64), ids, logits.new_empty((rows, k))


def _fake_settle_drafts(drafts: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return drafts.new_empty(drafts.shape), drafts.new_empty(1), drafts.new_empty(1)


def _plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (normed * weight.float()).to(x.dtype)


def runs_natively(x: Tensor, *others: Tensor) -> bool:
    """Whether operators of the core compute from `x` and the others."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    return _available and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *others)))


_available = core_library() is not None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, computed in float32, in the dtype of `x`.

    x [..., D] (rows at one stride), weight [D] float32, bfloat16 or float16. A row's result does not depend on the
    others. Native for float32 on CPU when no gradient is wanted, else plain torch.
    """
    if runs_natively(x, weight):
        normed: Tensor = torch.ops.dsv3rt.rms_norm(x, weight, eps)
        return normed
    return _plain_rms_norm(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x + residual, rms_norm(x + residual)) in one pass; as `rms_norm`."""
    if runs_natively(x, residual, weight):
        result: tuple[Tensor, Tensor] = torch.ops.dsv3rt.add_rms_norm(x, residual, weight, eps)
        return result
    total = x + residual
    return total, _plain_rms_norm(total, weight, eps)


def greatest(x_TD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(values [T, K], ids int64 [T, K]) of each row's greatest, best first; NaN is greater than all.

    Where a few of a vocabulary are wanted, native for float32 on CPU takes a fraction of the time of torch's, and of
    equals takes the lowest id.
    """
    if runs_natively(x_TD):
        result: tuple[Tensor, Tensor] = torch.ops.dsv3rt.greatest(x_TD.contiguous(), k)
        return result
    best = x_TD.topk(k, dim=-1)
    return best.values, best.indices


def read_bandwidth_gbs(megabytes: int = 512, repeats: int = 5) -> float:
    """GB/s (10^9 bytes) at which this machine reads memory that is in no cache, with torch's threads: best of
    `repeats`.

    Takes about 0.3 s. Without native kernels, torch's own sum is timed, which is a little slower.
    """
    buffer = torch.ones(megabytes << 17, dtype=torch.int64)
    library = core_library()

    def read() -> None:
        if library is not None:
            library.c.dsv3rt_read(buffer.data_ptr(), buffer.nbytes)
        else:
            buffer.sum()

    read()
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        read()
        best = min(best, time.perf_counter() - begin)
    return buffer.nbytes / best / 1e9

"""The plugin's native operators (csrc/), their shapes for the compiler, and what they need to know.

Legend: N outputs of a matrix, K inputs, T tokens, D hidden, F expert hidden, E experts.

    fp8_linear(x [..., K], weight e4m3 [N, K], scale_inv float32 [ceil(N/128), ceil(K/128)]) -> [..., N]
    dense_linear(x [..., K], weight float32|bfloat16|float16 [N, K]) -> [..., N]
    packed_linear(x [..., K], weight bfloat16 [N, K], packed int64 [2]) -> [..., N]
    fp8_ffn, dense_ffn, packed_ffn(x [..., D], gate, up [F, D], down [D, F]) -> [..., D]
    experts(x [T, D], weights [T, k], ids [T, k], table [E, 3, 3], F, format) -> [T, D]

x is contiguous float32. `table` holds addresses: (weight, scales or 0, packed or 0) of gate, up and down of each
expert; the tensors must outlive it. `packed` is the word of a `Room` that `pack_weights` fills: up to 16 tokens read
what is there instead of the weight as soon as it is full, to the same result bit for bit. A token's result is bitwise
the same whatever is computed beside it, up to 16 tokens in all. With FP8 on AMD's processors with AVX2 (`avx2amd`)
activations are multiplied by 2^64 on their way: none may exceed 1.8e19.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dsv3rt.native import NativeLibrary, load_library

FORMATS = {torch.float8_e4m3fn: 0, torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}
"""Stored dtype -> the number by which the operators know it."""


_POINTER = ctypes.c_void_p
_WANTED = 1
"""See packed.h."""
_HUGE_PAGE = 2 << 20


@functools.cache
def library() -> NativeLibrary | None:
    """The native library, or None where it cannot be built."""
    loaded = load_library("fp8", Path(__file__).parent / "csrc")
    if loaded is not None:
        loaded.c.dsv3rt_has_nan.argtypes = (_POINTER, ctypes.c_int64)
        loaded.c.dsv3rt_has_nan.restype = ctypes.c_int
        loaded.c.dsv3rt_packed_bytes.argtypes = (ctypes.c_int64, ctypes.c_int64)
        loaded.c.dsv3rt_packed_bytes.restype = ctypes.c_int64
        loaded.c.dsv3rt_pack_weights.argtypes = (_POINTER, ctypes.c_int64, ctypes.c_int64, *[_POINTER] * 3)
        loaded.c.dsv3rt_pack_weights.restype = ctypes.c_int
        loaded.c.dsv3rt_discard_packed.argtypes = (_POINTER,)
        loaded.c.dsv3rt_discard_packed.restype = None
        loaded.c.dsv3rt_packed_read_bytes.argtypes = (ctypes.c_int64, ctypes.c_int64, _POINTER)
        loaded.c.dsv3rt_packed_read_bytes.restype = ctypes.c_int64
        fake = torch.library.register_fake
        fake("dsv3rt::fp8_linear", lambda x, weight, scale_inv: x.new_empty((*x.shape[:-1], weight.shape[0])))
        fake("dsv3rt::dense_linear", lambda x, weight: x.new_empty((*x.shape[:-1], weight.shape[0])))
        fake("dsv3rt::packed_linear", lambda x, weight, packed: x.new_empty((*x.shape[:-1], weight.shape[0])))
        fake("dsv3rt::packed_ffn", lambda x, gate, gate_p, up, up_p, down, down_p: x.new_empty(x.shape))
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


def packed_bytes(shape: Sequence[int]) -> int:
    """Bytes of memory for the packed weights of a matrix [N, K]; 0 where no kernel reads such."""
    native = library()
    return 0 if native is None else int(native.c.dsv3rt_packed_bytes(*shape))


def reads_packed() -> bool:
    """Whether kernels read packed weights."""
    return packed_bytes((1, 1)) > 0


@dataclass(frozen=True)
class Room:
    """For one matrix' packed weights."""

    word: Tensor
    """int64 [2] that products find them by, at its own place only. Its memory is also theirs."""
    address: int


def make_rooms(shapes: Sequence[Sequence[int]]) -> list[Room]:
    """Rooms for these matrices [N, K], all of one piece of memory, which is touched only when they are filled; in huge
    pages where the system has such, which are read a sixth faster."""
    starts = list(itertools.accumulate((packed_bytes(shape) for shape in shapes), initial=0))
    words_bytes = -(-2 * 8 * len(shapes) // _HUGE_PAGE) * _HUGE_PAGE  # pages that no packed weights are in
    memory = mmap.mmap(-1, words_bytes + starts[-1] + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE, words_bytes)
    words = torch.frombuffer(memory, dtype=torch.int64, count=2 * len(shapes))
    words[1::2] = torch.arange(words.data_ptr(), words.data_ptr() + words.nbytes, 16)
    first = -(-(words.data_ptr() + words_bytes) // _HUGE_PAGE) * _HUGE_PAGE
    return [Room(word, first + start) for word, start in zip(words.view(-1, 2), starts[:-1], strict=True)]


def pack_weights(weight: Tensor, room: Room, stop: ctypes.c_int32 | None = None) -> bool:
    """Fill a room from a contiguous bfloat16 matrix, in this thread, other Python threads running meanwhile; products
    read it from then on. False, and never read, where the weights' exponents are too far apart, when it has been
    discarded, or when `stop` becomes 1."""
    native = library()
    assert native is not None and weight.dtype == torch.bfloat16 and weight.is_contiguous()
    flag = ctypes.c_int32() if stop is None else stop
    places = room.address, room.word.data_ptr(), ctypes.addressof(flag)
    return bool(native.c.dsv3rt_pack_weights(weight.data_ptr(), *weight.shape, *places))


def is_wanted(word: Tensor) -> bool:
    """Whether a product would have read packed weights that are not there yet."""
    return int(word[0]) == _WANTED


def discard_packed(word: Tensor) -> None:
    """The weights may have changed: from now on they are read themselves, by every graph that has this word."""
    native = library()
    assert native is not None
    native.c.dsv3rt_discard_packed(word.data_ptr())


def packed_read_bytes(weight: Tensor, word: Tensor) -> int:
    """Bytes that a product reads of the packed weights; 0 while it reads the weight."""
    native = library()
    assert native is not None
    return int(native.c.dsv3rt_packed_read_bytes(*weight.shape, word.data_ptr()))

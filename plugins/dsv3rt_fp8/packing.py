"""Packed copies of bfloat16 weights: 12 bits a weight, for the same results bit for bit (the format: csrc/packed.h).

Decoding is bound by what it reads. The copies are made in a thread of low priority, one matrix after another, from the
first product on that would read one: the first prompt has the machine for itself. Products of up to 16 tokens read a
copy as soon as it is full.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from dsv3rt.weights.prefault import available_memory
from dsv3rt_fp8 import native_ops
from dsv3rt_fp8.experts import PROJECTIONS, Experts
from dsv3rt_fp8.modules import FeedForward, Linear

PackMode = Literal["auto", "on", "off"]

LEAST_MATRIX = 256 << 10
"""Bytes: smaller matrices are a small part of what is read."""
LEAST_MODEL = 128 << 20
"""Bytes: what is less fits into a cache, from where reading does not take long."""
SHARE = 0.76
"""About, of the bytes of a matrix, those of its packed copy."""
NICENESS = 10
LOOK_EVERY_S = 0.05


def is_worth_it(mode: PackMode, weight_bytes: int, packed_bytes: int) -> bool:
    """Whether to make copies of so many bytes for a model of so many. `auto` makes none of a model that fits into a
    cache, and none that would take more than two thirds of the memory that the weights themselves leave free."""
    if mode == "auto":
        return weight_bytes >= LEAST_MODEL and packed_bytes <= 2 * (available_memory() - weight_bytes) // 3
    return mode == "on"


@dataclass(frozen=True)
class Unit:
    """Matrices that one kernel reads: all are packed or none."""

    matrices: Sequence[Linear]
    read_share: float
    """Of them, what one token reads."""
    experts: Experts | None = None

    def fits(self, least: int) -> bool:
        """Whether a kernel reads packed copies of these, none being smaller than `least` bytes."""
        return all(
            matrix.native
            and matrix.packable
            and matrix.weight.dtype == torch.bfloat16
            and not matrix.weight.requires_grad
            and matrix.weight.nbytes >= least
            for matrix in self.matrices
        )

    @property
    def packed_bytes(self) -> int:
        return sum(native_ops.packed_bytes(matrix.weight.shape) for matrix in self.matrices)

    def saved_bytes(self) -> float:
        """What a token does not have to read any more, by now."""
        saved = 0
        for matrix in self.matrices:
            if matrix.packed is not None and (read := native_ops.packed_read_bytes(matrix.weight, matrix.packed)):
                saved += matrix.weight.nbytes - read
        return self.read_share * saved


def units_of(roots: Sequence[nn.Module], experts_a_token: int) -> Iterator[Unit]:
    """Everything in `roots` that could be packed, what every token reads first."""
    seen: set[int] = set()
    late: list[Unit] = []
    for root in roots:
        for module in root.modules():
            if id(module) in seen:
                continue
            seen.add(id(module))
            if isinstance(module, Experts):
                matrices = [matrix for projection in PROJECTIONS for matrix in module.matrices(projection)]
                seen.update(id(part) for part in module.modules())
                late.append(Unit(matrices, experts_a_token / module.count, module))
            elif isinstance(module, FeedForward):
                seen.update(id(part) for part in module.modules())
                yield Unit([module.gate_proj, module.up_proj, module.down_proj], 1.0)
            elif isinstance(module, Linear):
                yield Unit([module], 1.0)
    yield from late


class Packer:
    """Packs what is worth it of one model, once."""

    def __init__(self) -> None:
        self.started = False
        self.units: list[Unit] = []
        self._thread: threading.Thread | None = None
        self._begin = threading.Event()

    def start(self, roots: Sequence[nn.Module], mode: PackMode, experts_a_token: int) -> None:
        """Choose, make room, and begin."""
        self.started = True
        if mode == "off" or not native_ops.reads_packed():
            return
        least = LEAST_MATRIX if mode == "auto" else 0
        units = [unit for unit in units_of(roots, experts_a_token) if unit.fits(least)]
        weights = {parameter.data_ptr(): parameter.nbytes for root in roots for parameter in root.parameters()}
        if not units or not is_worth_it(mode, sum(weights.values()), sum(unit.packed_bytes for unit in units)):
            return
        matrices = [matrix for unit in units for matrix in unit.matrices]
        rooms = native_ops.make_rooms([matrix.weight.shape for matrix in matrices])
        for matrix, room in zip(matrices, rooms, strict=True):
            matrix.packed = room.word
        for unit in units:
            if unit.experts is not None:
                unit.experts.bind()
        self.units = units
        jobs = [(weakref.ref(matrix), room) for matrix, room in zip(matrices, rooms, strict=True)]
        stop = ctypes.c_int32()
        self._thread = threading.Thread(target=_work, args=(jobs, self._begin, stop), daemon=True)
        weakref.finalize(self, _end, self._thread, self._begin, stop)  # at the end of the program at the latest
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until all is packed, which begins now at the latest; False when time ran out."""
        if self._thread is None:
            return True
        self._begin.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def saved_bytes_per_token(self, model: nn.Module) -> int:
        """How much less one token reads of `model` than its weights take as they are stored, by now."""
        inside = {id(part) for part in model.modules()}
        return round(sum(unit.saved_bytes() for unit in self.units if id(unit.matrices[0]) in inside))


def _end(thread: threading.Thread, begin: threading.Event, stop: ctypes.c_int32) -> None:
    """Stop the thread, which takes microseconds, and wait for it: none may be left at work when the program ends."""
    stop.value = 1
    begin.set()
    if threading.current_thread() is not thread:
        thread.join()


def _work(
    jobs: Sequence[tuple[weakref.ref[Linear], native_ops.Room]], begin: threading.Event, stop: ctypes.c_int32
) -> None:
    """Thread. It keeps alive no more than the matrix it is at, and the room for all."""
    while not begin.wait(LOOK_EVERY_S) and not native_ops.is_wanted(jobs[0][1].word):
        pass
    with contextlib.suppress(OSError, AttributeError):  # Linux: of this thread alone
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
    for reference, room in jobs:
        matrix = reference()
        if stop.value:
            return
        if matrix is not None:
            native_ops.pack_weights(matrix.weight.detach(), room, stop)
        del matrix

"""The header of one safetensors file: which tensors it holds, where and as what, without reading any of them.

Format: 8 bytes little-endian length N, N bytes of JSON {name: {dtype, shape, data_offsets}}, then the data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from dsv3rt.errors import CheckpointError

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E8M0": torch.float8_e8m0fnu,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)
"""safetensors' dtype codes that this runtime reads."""

_LONGEST_HEADER = 100_000_000
_AGAIN = "download this file again"


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies. `start` and `end` are bytes from the beginning of the file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Every tensor of `file`, in the order of the data. Raises CheckpointError when the file is not whole."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > _LONGEST_HEADER:
                raise CheckpointError(f"{file} is not a safetensors file", fix=_AGAIN)
            if size < 8 + length:
                raise CheckpointError(f"{file} is truncated within its header: {size} bytes", fix=_AGAIN)
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}", fix="check the file's permissions") from None
    try:
        raw = json.loads(text, object_pairs_hook=_unique)
        if not isinstance(raw, dict):
            raise ValueError("not a JSON object")
        infos = [_entry(name, value, file, 8 + length) for name, value in raw.items() if name != "__metadata__"]
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file} has a malformed header: {error}", fix=_AGAIN) from None
    infos.sort(key=lambda info: (info.start, info.end))
    end = 8 + length
    for info in infos:
        if info.start != end:
            raise CheckpointError(f"{file} has a malformed header: a gap or overlap before {info.name}", fix=_AGAIN)
        end = info.end
    if size < end:
        raise CheckpointError(f"{file} is truncated: {size:,} of {end:,} bytes", fix=_AGAIN)
    if size > end:
        raise CheckpointError(f"{file} is {size - end:,} bytes longer than its header says", fix=_AGAIN)
    return {info.name: info for info in infos}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys must differ."""
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} appears twice")
    return result


def _entry(name: str, raw: Any, file: Path, data: int) -> TensorInfo:
    """Understand one tensor's entry; `data` is where the data begins. Raises ValueError, KeyError or TypeError."""
    code, shape, (start, end) = raw["dtype"], tuple(raw["shape"]), raw["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
        raise ValueError(f"{name} has a shape or an offset that is not a whole number")
    if code not in DTYPES:
        raise CheckpointError(
            f"{file}: {name} is stored as {code}, which this runtime does not read",
            fix=f"known: {', '.join(DTYPES)}",
        )
    dtype = DTYPES[code]
    if end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} takes {end - start} bytes, its shape {list(shape)} needs another number")
    return TensorInfo(name, dtype, shape, file, data + start, data + end)

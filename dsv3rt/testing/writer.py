"""Write safetensors shards as a stream: bounded memory, nothing that looks whole until it is.

Files are made in a hidden folder beside the target, which takes the target's name at the very end.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from dsv3rt.errors import CheckpointError
from dsv3rt.weights.header import DTYPES
from dsv3rt.weights.layout import INDEX, SINGLE

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_MARGIN = 64 << 20


@dataclass(frozen=True)
class Planned:
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


@contextmanager
def atomic_folder(target: Path, need: int) -> Iterator[Path]:
    """A scratch folder that becomes `target` when the block ends well, and vanishes when it does not.

    Raises CheckpointError when `target` exists and is not empty, when `need` bytes do not fit, or when the disk
    fills up.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} exists already: not overwritten", fix="choose another folder, or remove it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if need + _MARGIN > free:
            raise CheckpointError(
                f"{target} needs {need / 1e9:.2f} GB, its disk has {free / 1e9:.2f} GB free", fix="choose another disk"
            )
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    except OSError as error:
        raise CheckpointError(f"{target} cannot be made: {error.strerror}", fix="choose another folder") from None
    try:
        yield scratch
        scratch.chmod(0o755)
        os.replace(scratch, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise CheckpointError(f"{target}: the disk is full; removed what was written", fix="free some") from None
        raise CheckpointError(f"{target} cannot be written: {error.strerror}", fix="choose another folder") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def split(tensors: Sequence[Planned], max_bytes: int) -> list[list[Planned]]:
    """Shards of at most `max_bytes` (a larger tensor gets one of its own), in order."""
    shards: list[list[Planned]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def split_evenly(tensors: Sequence[Planned], count: int) -> list[list[Planned]]:
    """At most `count` shards of about equal size, none empty, in order."""
    total = sum(tensor.nbytes for tensor in tensors) or 1
    shards: list[list[Planned]] = [[] for _ in range(count)]
    size = 0
    for tensor in tensors:
        shards[min(count - 1, (size + tensor.nbytes // 2) * count // total)].append(tensor)
        size += tensor.nbytes
    return [shard for shard in shards if shard]


def write_shards(folder: Path, shards: Sequence[Sequence[Planned]]) -> Iterator[tuple[Planned, BinaryIO]]:
    """Write all files; yields (tensor, stream) for each, and the caller writes `tensor.nbytes` bytes to the stream.

    More than one shard gets an index. Within a shard wider dtypes come first, so that every tensor is aligned.
    """
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        ordered = sorted(shard, key=lambda tensor: -tensor.dtype.itemsize)
        with (folder / name).open("wb") as stream:
            stream.write(_header(ordered))
            for tensor in ordered:
                weight_map[tensor.name] = name
                try:
                    yield tensor, stream
                except GeneratorExit:  # writing failed: so would what is left in the buffer, which nobody wants
                    with suppress(OSError):
                        stream.close()
                    raise
    if len(shards) > 1:
        total = sum(tensor.nbytes for shard in shards for tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _header(tensors: Iterable[Planned]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        offsets = [offset, offset + tensor.nbytes]
        entries[tensor.name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        offset += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text

"""Which safetensors files make up a checkpoint folder: one file, an index and its shards, or bare shards."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dsv3rt.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")
_REFUSED = {"*.bin": "pickle", "*.pt": "pickle", "*.pth": "pickle", "*.ckpt": "pickle", "*.gguf": "GGUF"}


@dataclass(frozen=True)
class Layout:
    """The files of a checkpoint."""

    folder: Path
    files: tuple[Path, ...]
    """In order of name; all lie in `folder` by name (a symbolic link may lead out of it: hub caches do so)."""
    weight_map: Mapping[str, Path] | None
    """Tensor name -> file, when there is an index."""
    total_size: int | None
    """Bytes of all tensors, when the index says so."""

    @property
    def missing(self) -> tuple[Path, ...]:
        return tuple(file for file in self.files if not file.is_file())


def read_layout(folder: Path) -> Layout:
    """Find the files. Nothing is opened but the index, and shards need not be present yet: see `Layout.missing`.

    Raises CheckpointError: not a folder, no weights in it, pickles only, or an index that is malformed or leads
    out of the folder.
    """
    if not folder.exists():
        raise CheckpointError(f"{folder} does not exist", fix="give the folder of a checkpoint")
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder", fix="give the folder that holds config.json")
    if (folder / SINGLE).exists():
        return Layout(folder, (folder / SINGLE,), None, None)
    if (folder / INDEX).exists():
        return _read_index(folder)
    found = sorted(file for file in folder.glob("*.safetensors"))
    if found:
        return Layout(folder, tuple(sorted({*found, *_siblings(found)})), None, None)
    for pattern, kind in _REFUSED.items():
        if other := next(iter(sorted(folder.glob(pattern))), None):
            why = "pickle files can run code" if kind == "pickle" else f"{kind} is another runtime's format"
            raise CheckpointError(
                f"{folder} holds {other.name} and no safetensors: refused, {why}", fix="get the safetensors version"
            )
    raise CheckpointError(f"no weights in {folder}: no {SINGLE}, no {INDEX}", fix="download the checkpoint's files")


def _siblings(found: list[Path]) -> set[Path]:
    """All shards that names like model-00002-of-00005.safetensors promise."""
    promised = set()
    for file in found:
        if match := _SHARD.fullmatch(file.name):
            stem, digits, count = match.groups()
            total = min(int(count), 100_000)
            promised |= {
                file.with_name(f"{stem}-{number:0{len(digits)}d}-of-{count}.safetensors")
                for number in range(1, total + 1)
            }
    return promised


def _read_index(folder: Path) -> Layout:
    """model.safetensors.index.json: {"metadata": {"total_size": bytes}, "weight_map": {tensor: file}}."""
    path = folder / INDEX
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}", fix="download this file again") from None
    weight_map = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map", fix="download this file again")
    files: dict[str, Path] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name:
            raise CheckpointError(f"{path}: {tensor} is mapped to {name!r}", fix="download this file again")
        if name not in files:
            files[name] = _inside(folder, name)
    metadata = raw.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return Layout(
        folder,
        tuple(files[name] for name in sorted(files)),
        {tensor: files[name] for tensor, name in weight_map.items()},
        int(total) if isinstance(total, (int, float)) else None,
    )


def _inside(folder: Path, name: str) -> Path:
    """`folder/name`, which must not lead out of the folder and must be safetensors."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
        raise CheckpointError(
            f"{folder / INDEX} names a file outside the folder: {name!r}", fix="do not trust this checkpoint"
        )
    if pure.suffix != ".safetensors":
        raise CheckpointError(f"{folder / INDEX} names {name!r}: refused", fix="only safetensors files are read")
    return folder / pure

"""A checkpoint's tensors by official name, memory-mapped: nothing is read before it is used, nothing is copied."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dsv3rt.errors import CheckpointError
from dsv3rt.weights.header import TensorInfo, read_header
from dsv3rt.weights.layout import read_layout


class Checkpoint:
    """The safetensors files of one folder, as an `interfaces.TensorSource`.

    Opening reads and checks every file's header, none of the data. Tensors are views of the mapped files and keep
    their file mapped; they must not be written to. Raises CheckpointError.
    """

    def __init__(self, folder: str | Path, optional: Callable[[str], bool] = lambda name: False) -> None:
        """optional: of a tensor's name, whether one can do without. A missing or damaged file that, by the index, holds
        nothing else is an error only when a tensor of it is asked for."""
        self.folder = Path(folder)
        self.layout = read_layout(self.folder)
        self.damaged: dict[Path, CheckpointError] = {}
        """Files one can do without, and what is wrong with them."""
        for file in self.layout.missing:
            if self._holds_only(file, optional):
                self.damaged[file] = CheckpointError(f"{file} is missing", fix="`dsv3rt download` fetches what lacks")
        if missing := [file for file in self.layout.missing if file not in self.damaged]:
            raise CheckpointError(
                f"{len(missing)} of {len(self.layout.files)} weight files are missing from {self.folder}: "
                f"{missing[0].name}" + (" and more" if len(missing) > 1 else ""),
                fix="download them again; `dsv3rt download` resumes",
            )
        self.infos: Mapping[str, TensorInfo] = self._gather(optional)
        self.consumed: set[str] = set()
        self.consumed_bytes = 0
        self._open: dict[Path, Any] = {}

    @functools.cached_property
    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.infos.values())

    def names(self) -> Sequence[str]:
        """Every tensor's name, in the order of the files."""
        return tuple(self.infos)

    def __contains__(self, name: str) -> bool:
        return name in self.infos

    def get(self, name: str, *, shape: Sequence[int] | None = None) -> Tensor:
        """See `interfaces.TensorSource.get`."""
        info = self.infos.get(name)
        if info is None:
            if (damage := self.damaged.get((self.layout.weight_map or {}).get(name, self.folder))) is not None:
                raise damage
            raise CheckpointError(self._missing(name), fix="this checkpoint is not complete, or not of this family")
        if shape is not None and tuple(shape) != info.shape:
            raise CheckpointError(
                f"{info.file.name}: {name} has shape {list(info.shape)}, config.json asks for {list(shape)}",
                fix="config.json and weights are not of one model",
            )
        if name not in self.consumed:
            self.consumed.add(name)
            self.consumed_bytes += info.nbytes
        try:
            if info.file not in self._open:
                self._open[info.file] = safe_open(info.file, framework="pt", device="cpu")
            tensor: Tensor = self._open[info.file].get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise CheckpointError(
                f"{info.file}: {name} cannot be read: {error}", fix="download this file again"
            ) from None
        return tensor

    def unused(self) -> tuple[str, ...]:
        """Names nobody has asked for yet."""
        return tuple(name for name in self.infos if name not in self.consumed)

    def _missing(self, name: str) -> str:
        files = self.layout.files
        lacking = f"{files[0].name} lacks it" if len(files) == 1 else f"none of the {len(files)} shards holds it"
        weight = name.removesuffix("_scale_inv")
        if weight != name and weight in self.infos:
            return f"{weight} in {self.infos[weight].file.name} is FP8 but its scale {name} is missing: {lacking}"
        return f"{name} is missing: {lacking}"

    def _holds_only(self, file: Path, optional: Callable[[str], bool]) -> bool:
        held = [name for name, place in (self.layout.weight_map or {}).items() if place == file]
        return bool(held) and all(map(optional, held))

    def _gather(self, optional: Callable[[str], bool]) -> dict[str, TensorInfo]:
        """All files' headers as one table, checked against the index."""
        infos: dict[str, TensorInfo] = {}
        for file in self.layout.files:
            if file in self.damaged:
                continue
            try:
                header = read_header(file)
            except CheckpointError as error:
                if not self._holds_only(file, optional):
                    raise
                self.damaged[file] = error
                continue
            for name, info in header.items():
                if name in infos:
                    raise CheckpointError(
                        f"{infos[name].file.name} and {file.name} both hold {name}",
                        fix="remove the files that do not belong to this checkpoint",
                    )
                infos[name] = info
        for name, file in (self.layout.weight_map or {}).items():
            if file not in self.damaged and (name not in infos or infos[name].file != file):
                raise CheckpointError(
                    f"{file.name} does not hold {name}, though the index says so", fix="download this file again"
                )
        return infos

"""One compiled graph on disk, ready to call with one module's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dsv3rt.compile.store import Entry

Call = Callable[[list[Tensor]], Any]
"""Flat tensors -> what the module's forward returns."""


class PackageError(Exception):
    """A compiled graph does not load, or does not fit the module."""


def load_package(entry: Entry, module: nn.Module) -> Call:
    """Load an entry (about a millisecond) and bind the module's weights by reference, copying none.

    The module must outlive the result. Raises PackageError.
    """
    for name in entry.info["operators"]:
        if not torch._C._dispatch_has_kernel(name):
            raise PackageError(f"operator {name} is not there")
    try:
        # torch's own Python wrapper for this would import its whole compiler
        loader = torch._C._aoti.AOTIModelPackageLoader(str(entry.folder), "model", True, 1, -1)  # type: ignore[attr-defined]
        constants = {name: _resolve(module, name) for name in loader.get_constant_fqns()}
        loader.load_constants(constants, False, True, True)
    except (RuntimeError, AttributeError) as error:
        raise PackageError(f"{type(error).__name__}: {error}".splitlines()[0]) from error
    return _Package(loader, constants, single=entry.info["output"] == "tensor")


class _Package:
    """A loaded graph. It holds the weights' tensors: the loader knows them by address only."""

    def __init__(self, loader: Any, constants: Mapping[str, Tensor], *, single: bool) -> None:
        self._run: Callable[[list[Tensor]], list[Tensor]] = loader.run
        self._constants = constants
        self._single = single

    def __call__(self, flat: list[Tensor]) -> Any:
        results = self._run(flat)
        return results[0] if self._single else tuple(results)


def _resolve(module: nn.Module, name: str) -> Tensor:
    """The tensor at a dotted path of attributes."""
    *path, last = name.split(".")
    owner: Any = module
    for part in path:
        owner = getattr(owner, part)
    tensor = getattr(owner, last)
    if not isinstance(tensor, Tensor):
        raise PackageError(f"{name} is not a tensor")
    return tensor.detach()


def output_kind(results: Any) -> str:
    """How `load_package` gives results back: "tensor" or "tuple". Raises PackageError for anything else."""
    if isinstance(results, Tensor):
        return "tensor"
    if isinstance(results, (tuple, list)) and all(isinstance(part, Tensor) for part in results):
        return "tuple"
    raise PackageError("a graph must return a tensor or a tuple of tensors")

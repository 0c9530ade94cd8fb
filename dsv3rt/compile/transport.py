"""A module without its weights, as bytes: how a module tree gets into the process that compiles it.

Tensors travel as shape, strides and dtype; on arrival they are memory that is never touched.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import io
import pickle
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class NotPortableError(Exception):
    """The module cannot be rebuilt in another process."""


def _blank(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, parameter: bool) -> Tensor:
    tensor = torch.empty_strided(shape, strides, dtype=dtype)
    return nn.Parameter(tensor, requires_grad=False) if parameter else tensor


def _bare(kind: type[nn.Module]) -> nn.Module:
    return kind.__new__(kind)


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            if obj.device.type != "cpu":
                raise NotPortableError(f"it lives on {obj.device}")
            return _blank, (tuple(obj.shape), obj.stride(), obj.dtype, isinstance(obj, nn.Parameter))
        if isinstance(obj, nn.Module) and "forward" in vars(obj):
            # an instance's own `forward` is this package's doing (see engine.py); over there the class's is wanted
            return _bare, (type(obj),), {key: value for key, value in vars(obj).items() if key != "forward"}
        return NotImplemented


def pack(module: nn.Module) -> bytes:
    """Raises NotPortableError."""
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump((_files(module), _openers(module)))
        _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(module)
    except NotPortableError:
        raise
    except Exception as error:
        raise NotPortableError(f"{type(error).__name__}: {error}".splitlines()[0]) from error
    return buffer.getvalue()


def unpack(data: bytes) -> nn.Module:
    """Rebuild the module, and register the operators of the native libraries that its plugins had opened."""
    buffer = io.BytesIO(data)
    files, openers = pickle.load(buffer)
    for name, file in files.items():
        _import_file(name, file)
    for name, function in openers:
        getattr(importlib.import_module(name), function)()
    module = pickle.load(buffer)
    assert isinstance(module, nn.Module)
    return module


def _files(module: nn.Module) -> dict[str, str]:
    """Modules of Python that are single files and cannot be imported by name (plugins given as files)."""
    found: dict[str, str] = {}
    for part in module.modules():
        name = type(part).__module__
        if name == "__main__":
            raise NotPortableError(f"{type(part).__qualname__} is defined in the program itself")
        origin = sys.modules[name]
        if origin.__spec__ is not None and "." not in name and name.startswith("dsv3rt_file_plugin_"):
            found[name] = str(origin.__file__)
    return found


def _openers(module: nn.Module) -> list[tuple[str, str]]:
    """The functions by which the packages of these modules have opened native libraries: cached ones without arguments
    that say they return a NativeLibrary."""
    packages = {type(part).__module__.partition(".")[0] for part in module.modules()} - {"torch"} | {"dsv3rt"}
    found = []
    for name, holder in sorted(sys.modules.items()):
        if name.partition(".")[0] not in packages:
            continue
        for attribute, value in sorted(vars(holder).items()):
            if not isinstance(value, functools._lru_cache_wrapper) or value.__module__ != name:
                continue
            returns = str(value.__wrapped__.__annotations__.get("return"))
            if "NativeLibrary" in returns and value.cache_info().currsize and not inspect.signature(value).parameters:
                found.append((name, attribute))
    return found


def _import_file(name: str, file: str) -> None:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)

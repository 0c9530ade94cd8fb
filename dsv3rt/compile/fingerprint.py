"""A text that differs when what a module computes may differ, whatever its weights hold.

It covers the module tree's classes, plain attributes and tensor shapes, the source code of every package that a class
comes from, torch, and the machine. Attributes a class lists in `position_attributes` only say
where a module sits (a layer's index) and are left out, so that all layers of a kind share one graph.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

SOURCE_SUFFIXES = frozenset({".py", ".cpp", ".h", ".so", ".cu"})
_HIDDEN = frozenset(
    """
    _parameters _buffers _modules _non_persistent_buffers_set forward training _is_full_backward_hook
    _backward_pre_hooks _backward_hooks _forward_hooks _forward_hooks_with_kwargs _forward_hooks_always_called
    _forward_pre_hooks _forward_pre_hooks_with_kwargs _state_dict_hooks _state_dict_pre_hooks
    _load_state_dict_pre_hooks _load_state_dict_post_hooks
    """.split()
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class UnkeyableError(Exception):
    """The module holds something whose meaning cannot be put into words; it can be compiled, but not cached."""


def fingerprint(module: nn.Module, threads: int) -> str:
    """Hex digest of everything about `module` that a graph of it for so many threads depends on. Raises
    UnkeyableError."""
    digest = hashlib.sha256()
    packages: set[str] = set()
    seen: dict[int, int] = {}
    for line in _describe(module, "", seen, packages):
        digest.update(line.encode() + b"\n")
    for package in sorted(packages - {"torch"} | {"dsv3rt"}):
        digest.update(f"{package} {source_digest(package)}\n".encode())
    digest.update(environment(threads).encode())
    return digest.hexdigest()


def _describe(module: nn.Module, path: str, seen: dict[int, int], packages: set[str]) -> Iterator[str]:
    """Lines for a module and everything in it; a module or tensor met twice is named by where it came first."""
    if id(module) in seen:
        yield f"{path} = module {seen[id(module)]}"
        return
    seen[id(module)] = len(seen)
    kind = type(module)
    packages.add(kind.__module__.partition(".")[0])
    yield f"{path} {kind.__module__}.{kind.__qualname__} training={module.training}"
    if any(getattr(module, hooks, None) for hooks in _HOOKS):
        raise UnkeyableError(f"{kind.__qualname__} has hooks")
    skipped = _HIDDEN | set(getattr(kind, "position_attributes", ()))
    attributes = {name: value for name, value in vars(module).items() if name not in skipped}
    tensors = {**module._parameters, **module._buffers}
    for name, tensor in tensors.items():
        yield f"{path}.{name} {_tensor(tensor, seen)}"
    for name in sorted(attributes):
        yield f"{path}.{name} = {_words(attributes[name], seen, packages)}"
    for name, child in module._modules.items():
        if child is None:
            yield f"{path}.{name} = None"
        else:
            yield from _describe(child, f"{path}.{name}", seen, packages)


def _tensor(tensor: Tensor | None, seen: dict[int, int]) -> str:
    if tensor is None:
        return "None"
    if id(tensor) in seen:
        return f"tensor {seen[id(tensor)]}"
    seen[id(tensor)] = len(seen)
    return f"{tensor.dtype} {tuple(tensor.shape)} {tensor.stride()} {tensor.device}"


def _words(value: Any, seen: dict[int, int], packages: set[str]) -> str:
    """A canonical text for a plain value. Raises UnkeyableError for anything else."""
    if value is None or isinstance(value, (bool, int, float, str, bytes, torch.dtype, torch.device, PurePath, range)):
        return repr(value)
    if isinstance(value, Tensor):
        return _tensor(value, seen)
    if isinstance(value, nn.Module):
        return "\n".join(_describe(value, "", seen, packages))
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({', '.join(_words(item, seen, packages) for item in value)})"
    if isinstance(value, (set, frozenset)):
        return f"set({', '.join(sorted(_words(item, seen, packages) for item in value))})"
    if isinstance(value, Mapping):
        return f"map({', '.join(f'{key!r}: {_words(item, seen, packages)}' for key, item in value.items())})"
    if isinstance(value, (FunctionType, type)) and "<" not in value.__qualname__:
        packages.add(value.__module__.partition(".")[0])
        return f"{value.__module__}.{value.__qualname__}"
    kind: Any = type(value)
    if (
        hasattr(value, "__dict__") and kind.__reduce_ex__ is object.__reduce_ex__
    ):  # a plain object: it is its attributes
        packages.add(type(value).__module__.partition(".")[0])
        words = ", ".join(f"{name}={_words(vars(value)[name], seen, packages)}" for name in sorted(vars(value)))
        return f"{type(value).__module__}.{type(value).__qualname__}({words})"
    raise UnkeyableError(f"it holds a {type(value).__module__}.{type(value).__qualname__}")


@functools.cache
def source_digest(package: str) -> str:
    """Digest of the source files of a top-level package, or of the one file of a module. Raises UnkeyableError."""
    module = sys.modules.get(package)
    if module is None:
        raise UnkeyableError(f"{package} is not imported")
    digest = hashlib.sha256()
    for path in _source_files(module):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _source_files(module: ModuleType) -> list[Path]:
    folders = getattr(module, "__path__", None)
    if folders is not None:
        found = [path for folder in folders for path in Path(folder).rglob("*") if path.suffix in SOURCE_SUFFIXES]
        return sorted(found)
    if (file := getattr(module, "__file__", None)) is None:
        raise UnkeyableError(f"{module.__name__} has no file")
    return [Path(file)]


@functools.cache
def _machine() -> str:
    flags = ""
    if (info := Path("/proc/cpuinfo")).is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        flags = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.system()} {platform.machine()} {' '.join(sorted(flags.split()))}"


def environment(threads: int) -> str:
    """Everything outside the module that a graph depends on."""
    native = os.environ.get("DSV3RT_NATIVE", "1")
    return repr((torch.__version__, _machine(), threads, native))

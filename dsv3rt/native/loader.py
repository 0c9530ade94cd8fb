"""Load native libraries into the process and register their operators with torch.

A library's operators appear as `torch.ops.dsv3rt.NAME`, implemented for CPU in C++. Code packaged by AOTInductor may
call the C functions `aoti_torch_cpu_NAME` of the library directly instead, since libraries are loaded with global
symbols.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from pathlib import Path

import torch

from dsv3rt.errors import UsageError
from dsv3rt.native.build import VARIANTS, BuildError, NativeSource, find_or_build

log = logging.getLogger("dsv3rt.native")


class NativeLibrary:
    """One loaded shared object."""

    def __init__(self, source: NativeSource, path: Path) -> None:
        self.name = source.name
        self.path = path
        self.c = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        self.c.dsv3rt_load.restype = ctypes.c_char_p
        self.c.dsv3rt_load.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_bool)
        best = int(self.c.dsv3rt_best_variant())
        variant = _wanted_variant(best)
        missing = self.c.dsv3rt_load(_libtorch()._handle, variant, True)
        if missing is not None:
            raise BuildError(f"this torch ({torch.__version__}) lacks {missing.decode()}")
        self.variants = VARIANTS[: best + 1]
        """Instruction sets this machine has, weakest first."""

    @property
    def variant(self) -> str:
        """The instruction set in use."""
        current = int(self.c.dsv3rt_select_variant(0))
        self.c.dsv3rt_select_variant(current)
        return VARIANTS[current]

    def select_variant(self, variant: str) -> str:
        """Use other kernels from now on (for tests and benches). Returns the name of those used before."""
        before = int(self.c.dsv3rt_select_variant(VARIANTS.index(variant)))
        if before < 0:
            raise UsageError(f"this machine has no {variant}", fix=f"it has {', '.join(self.variants)}")
        return VARIANTS[before]


def _wanted_variant(best: int) -> int:
    wanted = os.environ.get("DSV3RT_ISA")
    if wanted is None:
        return best
    if wanted not in VARIANTS[: best + 1]:
        raise UsageError(
            f"DSV3RT_ISA={wanted} cannot run here", fix=f"this machine has {', '.join(VARIANTS[: best + 1])}"
        )
    return VARIANTS.index(wanted)


@functools.cache
def _libtorch() -> ctypes.CDLL:
    """The libtorch_cpu that `import torch` has loaded."""
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        if (folder / name).exists():
            return ctypes.CDLL(str(folder / name))
    raise BuildError(f"no libtorch_cpu in {folder}")


@functools.cache
def _load(source: NativeSource) -> NativeLibrary | None:
    if os.environ.get("DSV3RT_NATIVE", "1") == "0":
        return None
    try:
        return NativeLibrary(source, find_or_build(source))
    except (BuildError, OSError) as error:
        _say_once(str(error))
        return None


@functools.cache
def _say_once(reason: str) -> None:
    """One line for all the libraries that one cause takes away."""
    log.warning("native kernels are not available, torch computes instead, slower: %s", reason)


def load_library(name: str, folder: Path) -> NativeLibrary | None:
    """The library `name` whose sources lie in `folder`, built, loaded and registered on the first call.

    None when it cannot be (no compiler, or DSV3RT_NATIVE=0 in the environment): says so once, in one line, and the
    caller falls back to plain torch.
    """
    return _load(NativeSource(name, folder))

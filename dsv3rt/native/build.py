"""Compile a native library: C++ sources -> one shared object in the user's cache.

Imports neither torch nor anything heavy, so that an installer may call it.

A folder of sources is one library. Every `*.cpp` is compiled once; every `*.simd.cpp` once per instruction set
(`VARIANTS`), with the flags and the macro of that set. The file is keyed by the sources, the compiler and the flags,
written under a temporary name and renamed, so two processes may build at once. Where: in `kernels` of the cache folder
(see cache_folder.py); a library built at install time lies beside its sources in `prebuilt/`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

HEADERS = Path(__file__).parent
KERNELS = "kernels"
"""The subfolder of the cache folder."""
_BUILDING = ".build-"
VARIANTS = ("portable", "avx2", "avx2amd", "avx512", "avx512vbmi", "amx")
"""Instruction sets to choose kernels by, weakest first. The order is that of dsv3rt_variants.h."""

_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c", "-mprefer-vector-width=512")
_VARIANT_FLAGS: Mapping[str, Sequence[str]] = {
    "portable": ("-ffp-contract=off",),
    "avx2": ("-DDSV3RT_IS_AVX2", "-mavx2", "-mfma", "-mf16c"),
    "avx512": ("-DDSV3RT_IS_AVX512", *_AVX512),
    "avx512vbmi": ("-DDSV3RT_IS_AVX512VBMI", "-mavx512vbmi", *_AVX512),
}
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math")
_WARNINGS = ("-Wall", "-Wno-psabi", "-Wno-ignored-attributes")


class BuildError(RuntimeError):
    """The library cannot be built: no compiler, or the compiler refused. The message is one line."""


@dataclass(frozen=True)
class NativeSource:
    """One library: its name and the folder that holds its `*.cpp` and headers."""

    name: str
    folder: Path
    extra_flags: Sequence[str] = field(default_factory=lambda: tuple(os.environ.get("DSV3RT_CXXFLAGS", "").split()))
    """For compiling and linking, e.g. a sanitizer's."""

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.cpp"))


def compiled_here() -> tuple[str, ...]:
    """The instruction sets that files are compiled for on this kind of machine."""
    sets = tuple(_VARIANT_FLAGS)
    return sets if platform.machine() in ("x86_64", "AMD64") else sets[:1]


def find_compiler() -> str | None:
    """Path of a C++ compiler: `$CXX`, or g++, clang++, c++ from PATH."""
    named = os.environ.get("CXX")
    return next((path for name in (named, "g++", "clang++", "c++") if name and (path := shutil.which(name))), None)


def _source_key(source: NativeSource) -> str:
    digest = hashlib.sha256()
    for path in sorted([*source.folder.glob("*.cpp"), *source.folder.glob("*.h"), *HEADERS.glob("*.h")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(
        repr((_FLAGS, _VARIANT_FLAGS, compiled_here(), tuple(source.extra_flags), platform.machine())).encode()
    )
    return digest.hexdigest()[:16]


def prebuilt_path(source: NativeSource) -> Path:
    """Where an installer puts the library. Its name holds the key of the sources, so a stale one is never loaded."""
    return source.folder / "prebuilt" / f"{source.name}-{_source_key(source)}.so"


def find_or_build(source: NativeSource) -> Path:
    """Path of the shared object, built if need be. Raises BuildError."""
    prebuilt = prebuilt_path(source)
    if prebuilt.exists():
        return prebuilt
    compiler = find_compiler()
    if compiler is None:
        raise BuildError("no C++ compiler (g++, clang++ or c++) on PATH")
    from dsv3rt import cache_folder  # an installer, which has only this file, builds elsewhere

    identity = hashlib.sha256(os.path.realpath(compiler).encode()).hexdigest()[:6]
    name = f"{source.name}-{_source_key(source)}-{identity}.so"
    for folder in cache_folder.places(KERNELS):
        if (folder / name).exists():
            return folder / name
    folder = cache_folder.writable(cache_folder.root() / KERNELS)
    cache_folder.sweep(folder, _BUILDING)
    build(source, folder / name, compiler)
    return folder / name


def build(source: NativeSource, target: Path, compiler: str) -> None:
    """Compile `source` into `target` (atomically). Raises BuildError."""
    jobs: list[list[str]] = []
    objects: list[str] = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{_BUILDING}{os.getpid()}-") as scratch:
            for path in source.files():
                simd = path.name.endswith(".simd.cpp")
                for variant in compiled_here() if simd else ("",):
                    out = f"{scratch}/{path.stem}.{variant}.o"
                    flags = _VARIANT_FLAGS[variant] if simd else ()
                    if simd and variant == "portable" and platform.machine() == "aarch64":
                        flags = ()
                    jobs.append(
                        [compiler, *_FLAGS, *flags, *source.extra_flags, f"-I{HEADERS}", "-c", str(path), "-o", out]
                    )
                    objects.append(out)
            # simd files take longest: start them first
            jobs.sort(key=lambda job: ".simd." not in job[-1])
            with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
                for _ in pool.map(_run, jobs):
                    pass
            whole = f"{scratch}/{target.name}"
            _run([compiler, "-shared", *source.extra_flags, "-o", whole, *objects, "-ldl"])
            os.replace(whole, target)
    except OSError as error:
        raise BuildError(f"cannot write {target}: {error.strerror or error}") from None


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = (
            [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["no message"]
        )
        raise BuildError(f"{Path(command[0]).name} refused: {lines[0]}")

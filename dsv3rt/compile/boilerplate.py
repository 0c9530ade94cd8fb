"""Compile what is the same in every AOTInductor package once, instead of with every graph.

The generated source of a graph begins with the whole of torch's `interface.cpp`: loading, constants, regular
expressions. With `-O1` that is 4 of the 5 to 7 seconds its compiler takes. Here it is an object file of its own, linked
to each graph. Should torch write its sources otherwise one day, they are compiled as they are.

torch's headers, which it precompiles itself, are kept beside it: whole or not there, since a compiler refuses half of
one ever after. Making one takes longer than it saves a single graph, so none waits for them: they are made ahead, by a
job of their own, and serve whichever graphs come to their C++ when they are there.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch._inductor.codecache as codecache
import torch._inductor.codegen.cpp_wrapper_cpu as generator
from torch._inductor.cpp_builder import CppBuilder
from torch.utils._filelock import FileLock

from dsv3rt import cache_folder
from dsv3rt.compile.fingerprint import environment

_MODEL = "torch::aot_inductor::AOTInductorModel"
_INCLUDE = "#include <torch/csrc/inductor/aoti_include/cpu.h>\n"
_ELSEWHERE = "namespace torch::aot_inductor { extern template class AOTInductorModelBase<AOTInductorModel>; }\n"
_HERE = f"template class torch::aot_inductor::AOTInductorModelBase<{_MODEL}>;\n"
_MAKING = ".making-"
_LESS_URGENT = 5
"""Added to the niceness of what precompiles headers."""
_UNUSED_S = 30 * 24 * 3600


def interface() -> str:
    """torch's `interface.cpp`, as it appears in generated sources."""
    path = Path(generator.__file__).parent / "aoti_runtime" / "interface.cpp"
    return path.read_text(encoding="utf-8").rstrip()


@contextlib.contextmanager
def compiled_once(common: Path, scratch: Path, *, ahead: bool) -> Iterator[None]:
    """While this lasts, torch's C++ builder leaves the interface out of what it compiles and links an object of it
    instead, made when first needed. It and precompiled headers are kept in `common`; headers are only made `ahead`."""
    place = _of_this_torch(common)
    kept = scratch / "common"  # torch does not quote the paths it gives to compilers, and those of users have spaces
    kept.symlink_to(place)
    text = interface()
    build: Callable[[CppBuilder], None] = CppBuilder.build
    headers: list[Future[None]] = []
    parts: list[Future[None]] = []

    def once(target: Path, make: Callable[[Path], Path]) -> None:
        """`make` returns a file in the folder it is given, which becomes `target` unless that is there."""
        with FileLock(f"{target}.lock"):
            if not target.exists():
                with _making(place, kept) as folder:
                    os.replace(make(folder), target)

    def precompiled(builder: CppBuilder, folder: Path) -> Path:
        target = Path(builder._target_file)
        builder._output = builder._output.replace(str(target), str(folder / target.name))
        build(builder)
        return folder / target.name

    def build_wrapper(builder: CppBuilder) -> None:
        options = (builder._compiler, builder._cflags_args, builder._definitions_args, text)
        other = kept / f"interface-{hashlib.sha256(repr(options).encode()).hexdigest()[:16]}.o"
        made = beside.submit(once, other, lambda folder: _interface_object(builder, build, folder, text))
        for header in headers:
            header.result()
        build(builder)
        made.result()
        _join(builder, other)

    def build_graph(builder: CppBuilder) -> None:
        source = Path(builder._sources_args)
        if builder._precompiling:
            if ahead:
                make = functools.partial(precompiled, builder)
                headers.append(later.submit(once, Path(builder._target_file), make))
        elif source.name.endswith(".wrapper.cpp") and text in (code := source.read_text(encoding="utf-8")):
            source.write_text(code.replace(text, _ELSEWHERE), encoding="utf-8")
            parts.append(beside.submit(build_wrapper, builder))  # the kernels are compiled at the same time
        else:
            # else it is linked
            for needed in headers if source.name.endswith(".kernel.cpp") else parts:
                needed.result()
            build(builder)

    places: Any = codecache
    before = places._HEADER_DIR, places._HEADER_LOCK_DIR
    places._HEADER_DIR, places._HEADER_LOCK_DIR = str(kept), str(kept / "locks")
    builder_class: Any = CppBuilder
    builder_class.build = build_graph
    try:
        with (
            ThreadPoolExecutor() as beside,
            ThreadPoolExecutor(1, initializer=os.nice, initargs=(_LESS_URGENT,)) as later,
        ):
            yield
    finally:
        builder_class.build = build
        places._HEADER_DIR, places._HEADER_LOCK_DIR = before


def mark_of_all(common: Path) -> Path:
    """The file that says that everything is there, on this machine and for this torch."""
    return _of_this_torch(common) / f"all-{hashlib.sha256(environment(1).encode()).hexdigest()[:16]}"


@contextlib.contextmanager
def _making(place: Path, kept: Path) -> Iterator[Path]:
    """A temporary folder in `place`, by way of the link `kept`."""
    cache_folder.sweep(place, _MAKING)
    with cache_folder.scratch(_MAKING, place) as folder:
        yield kept / Path(folder).name


def _of_this_torch(common: Path) -> Path:
    """The part of `common` for this torch; those of others go when they have not been used for long."""
    mine = common / torch.__version__
    mine.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.utime(mine)
    for other in common.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - other.stat().st_mtime > _UNUSED_S:
                shutil.rmtree(other, ignore_errors=True)
    return mine


def _interface_object(like: CppBuilder, build: Callable[[CppBuilder], None], folder: Path, text: str) -> Path:
    """The interface, compiled in `folder` with the options of `like`."""
    source = folder / "interface.cpp"
    source.write_text(_INCLUDE + text + "\n" + _HERE, encoding="utf-8")
    made = CppBuilder("interface", str(source), like._build_option, output_dir=str(folder))
    build(made)
    return Path(made.get_target_file_path())


def _join(builder: CppBuilder, other: Path) -> None:
    """Link an object into the one that `builder` has made."""
    target = builder.get_target_file_path()
    whole = f"{target}.joined"
    subprocess.run([builder._compiler, "-r", "-nostdlib", "-o", whole, target, str(other)], check=True)
    os.replace(whole, target)

"""Compile what is the same in every AOTInductor package once, instead of with every graph.

The generated source of a graph begins with the whole of torch's `interface.cpp`: loading, constants, regular
expressions. With `-O1` that is 4 of the 5 to 7 seconds its compiler takes. Here it is an object file of its own, linked
to each graph. Should torch write its sources otherwise one day, they are compiled as they are.

torch's headers, which it precompiles itself, are kept beside it: whole or not there, since a compiler refuses half of
one ever after.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch._inductor.codecache as codecache
import torch._inductor.codegen.cpp_wrapper_cpu as generator
from torch._inductor.cpp_builder import CppBuilder
from torch.utils._filelock import FileLock

from dsv3rt import cache_folder

_MODEL = "torch::aot_inductor::AOTInductorModel"
_INCLUDE = "#include <torch/csrc/inductor/aoti_include/cpu.h>\n"
_ELSEWHERE = "namespace torch::aot_inductor { extern template class AOTInductorModelBase<AOTInductorModel>; }\n"
_HERE = f"template class torch::aot_inductor::AOTInductorModelBase<{_MODEL}>;\n"
_MAKING = ".making-"
_UNUSED_S = 30 * 24 * 3600


def interface() -> str:
    """torch's `interface.cpp`, as it appears in generated sources."""
    path = Path(generator.__file__).parent / "aoti_runtime" / "interface.cpp"
    return path.read_text(encoding="utf-8").rstrip()


@contextlib.contextmanager
def compiled_once(common: Path, scratch: Path) -> Iterator[None]:
    """While this lasts, torch's C++ builder leaves the interface out of what it compiles and links an object of it
    instead, made when first needed. It and precompiled headers are kept in `common`."""
    place = _of_this_torch(common)
    kept = scratch / "common"  # torch does not quote the paths it gives to compilers, and those of users have spaces
    kept.symlink_to(place)
    text = interface()
    build: Callable[[CppBuilder], None] = CppBuilder.build

    def build_graph(builder: CppBuilder) -> None:
        source = Path(builder._sources_args)
        if builder._precompiling:
            target = Path(builder._target_file)
            with _making(place, kept) as folder:
                builder._output = builder._output.replace(str(target), str(folder / target.name))
                build(builder)
                os.replace(folder / target.name, target)
        elif source.name.endswith(".wrapper.cpp") and text in (code := source.read_text(encoding="utf-8")):
            source.write_text(code.replace(text, _ELSEWHERE), encoding="utf-8")
            build(builder)
            options = (builder._compiler, builder._cflags_args, builder._definitions_args, text)
            other = kept / f"interface-{hashlib.sha256(repr(options).encode()).hexdigest()[:16]}.o"
            with FileLock(f"{other}.lock"):
                if not other.exists():
                    with _making(place, kept) as folder:
                        os.replace(_interface_object(builder, build, folder, text), other)
            _join(builder, other)
        else:
            build(builder)

    places: Any = codecache
    before = places._HEADER_DIR, places._HEADER_LOCK_DIR
    places._HEADER_DIR, places._HEADER_LOCK_DIR = str(kept), str(kept / "locks")
    builder_class: Any = CppBuilder
    builder_class.build = build_graph
    try:
        yield
    finally:
        builder_class.build = build
        places._HEADER_DIR, places._HEADER_LOCK_DIR = before


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

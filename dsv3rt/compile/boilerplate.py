"""Compile what is the same in every AOTInductor package once, instead of with every graph.

The generated source of a graph begins with the whole of torch's `interface.cpp`: loading, constants, regular
expressions. With `-O1` that is 4 of the 5 to 7 seconds its compiler takes. Here it is an object file of its own, kept
beside the graphs and linked to each. Should torch write its sources otherwise one day, they are compiled as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch._inductor.codegen.cpp_wrapper_cpu as generator
from torch._inductor.cpp_builder import CppBuilder

_MODEL = "torch::aot_inductor::AOTInductorModel"
_INCLUDE = "#include <torch/csrc/inductor/aoti_include/cpu.h>\n"
_ELSEWHERE = "namespace torch::aot_inductor { extern template class AOTInductorModelBase<AOTInductorModel>; }\n"
_HERE = f"template class torch::aot_inductor::AOTInductorModelBase<{_MODEL}>;\n"


def interface() -> str:
    """torch's `interface.cpp`, as it appears in generated sources."""
    path = Path(generator.__file__).parent / "aoti_runtime" / "interface.cpp"
    return path.read_text(encoding="utf-8").rstrip()


@contextlib.contextmanager
def compiled_once(folder: Path) -> Iterator[None]:
    """While this lasts, torch's C++ builder leaves the interface out of what it compiles and links an object of it
    instead, made in `folder` when first needed."""
    text = interface()
    build: Callable[[CppBuilder], None] = CppBuilder.build

    def build_graph(builder: CppBuilder) -> None:
        source = Path(builder._sources_args)
        if source.name.endswith(".wrapper.cpp") and text in (code := source.read_text(encoding="utf-8")):
            source.write_text(code.replace(text, _ELSEWHERE), encoding="utf-8")
            build(builder)
            _join(builder, _interface_object(builder, build, folder, text))
        else:
            build(builder)

    builder_class: Any = CppBuilder
    builder_class.build = build_graph
    try:
        yield
    finally:
        builder_class.build = build


def _interface_object(like: CppBuilder, build: Callable[[CppBuilder], None], folder: Path, text: str) -> Path:
    """The interface, compiled with the options of `like` unless that has been done."""
    options = (torch.__version__, like._compiler, like._cflags_args, like._definitions_args, text)
    target = folder / f".interface-{hashlib.sha256(repr(options).encode()).hexdigest()[:16]}.o"
    if not target.exists():
        with tempfile.TemporaryDirectory(prefix=".interface-", dir=folder) as scratch:
            source = Path(scratch) / "interface.cpp"
            source.write_text(_INCLUDE + text + "\n" + _HERE, encoding="utf-8")
            made = CppBuilder("interface", str(source), like._build_option, output_dir=scratch)
            build(made)
            os.replace(made.get_target_file_path(), target)
    return target


def _join(builder: CppBuilder, other: Path) -> None:
    """Link an object into the one that `builder` has made."""
    target = builder.get_target_file_path()
    whole = f"{target}.joined"
    subprocess.run([builder._compiler, "-r", "-nostdlib", "-o", whole, target, str(other)], check=True)
    os.replace(whole, target)

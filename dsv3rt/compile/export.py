"""From a module to a package: torch.export, then AOTInductor. Runs in the side process only: it imports the compiler.

The weights are not in the package and not needed to make it: it binds those of whichever module it is loaded for.
"""

from __future__ import annotations

import ctypes
import os
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.fx.experimental._config as shape_options
from torch import Tensor, nn

from dsv3rt.compile.boilerplate import compiled_once, mark_of_all
from dsv3rt.compile.spec import ArgSpec, GraphSpec, TensorSpec

# sizes that graphs are traced with where they may vary: any value in range gives the same graph, these give its loops
# their expected lengths
_TYPICAL = {(1, 16): 4, (17, 1 << 16): 256}
_TYPICAL_CAPACITY = 4096

_C_TYPES = {"Tensor": "AtenTensorHandle", "int": "int64_t", "SymInt": "int64_t", "float": "double", "bool": "int32_t"}


def build_package(
    module: nn.Module,
    spec: GraphSpec,
    threads: int,
    folder: Path,
    scratch: Path,
    common: Path,
    *,
    ahead: bool = False,
) -> Mapping[str, Any]:
    """Compile `module` for `spec` into `folder`; returns what is to be recorded with it. `scratch`: for what comes up
    on the way; `common`: keeps what graphs have in common; `ahead`: make that.

    Raises whatever torch raises when the module cannot be a whole graph.
    """
    sizes = {name: _TYPICAL.get((least, most), _TYPICAL_CAPACITY) for name, least, most in spec.ranges}
    dims = {name: torch.export.Dim(name, min=least, max=most) for name, least, most in spec.ranges}
    args = tuple(_example(arg, sizes) for arg in spec.args)
    shapes = tuple(_dims(arg, dims) for arg in spec.args)
    # else a size that may be 1 gets a graph of its own
    with warnings.catch_warnings(), torch.no_grad(), shape_options.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        warnings.simplefilter("ignore")
        exported = torch.export.export(module, args, dynamic_shapes=shapes, strict=False)
        archive = scratch / "graph.pt2"
        with compiled_once(common, scratch, ahead=ahead):
            torch._inductor.aoti_compile_and_package(
                exported, package_path=str(archive), inductor_configs=_options(threads if spec.many_tokens else 1)
            )
    spec_out = exported.call_spec.out_spec
    if spec_out.is_leaf():
        output = "tensor"
    elif spec_out.type in (tuple, list) and all(child.is_leaf() for child in spec_out.children()):
        output = "tuple"
    else:
        raise TypeError("a graph must return a tensor or a tuple of tensors")
    _unpack(archive, folder)
    archive.unlink()
    operators = sorted({str(node.target._schema.name) for node in exported.graph.nodes if _ours(node.target)})
    return {
        "operators": operators,
        "output": output,
        "module": type(module).__qualname__,
        "spec": spec.canonical(),
        "torch": torch.__version__,
    }


class _Smallest(nn.Module):
    """A graph of one loop."""

    def forward(self, x_N: Tensor) -> Tensor:
        return x_N + 1


def build_common(scratch: Path, common: Path) -> None:
    """Make what `common` keeps, by making a graph that is of no other use, unless that has been done. `scratch`: for
    what comes up on the way."""
    done = mark_of_all(common)
    if done.exists():
        return
    spec = GraphSpec((TensorSpec((64,), "float32"),), ())
    build_package(_Smallest(), spec, 1, scratch / "files", scratch, common, ahead=True)
    done.touch()


def _ours(target: Any) -> bool:
    """Whether a node's target is an operator that a native library registers."""
    return isinstance(target, torch._ops.OpOverload) and target.namespace == "dsv3rt"


def _example(arg: ArgSpec, sizes: Mapping[str, int]) -> Any:
    if isinstance(arg, TensorSpec):
        shape = [sizes[size] if isinstance(size, str) else size for size in arg.shape]
        return torch.empty(shape, dtype=arg.torch_dtype)
    return tuple(_example(part, sizes) for part in arg)


def _dims(arg: ArgSpec, dims: Mapping[str, Any]) -> Any:
    if isinstance(arg, TensorSpec):
        return {d: dims[size] for d, size in enumerate(arg.shape) if isinstance(size, str)}
    return tuple(_dims(part, dims) for part in arg)


def _options(threads: int) -> dict[str, Any]:
    return {
        "aot_inductor.package_constants_in_so": False,
        # tensors of a few elements would be written into the code, and here their values are not the real ones
        "always_keep_tensor_constants": True,
        "aot_inductor.enable_line_tables": False,
        "aot_inductor.custom_ops_to_c_shims": direct_calls(),
        # what the generated loops are for, whatever the side process uses itself: one thread where they are so
        # short that threads would take longer to meet (see dsv3rt_crew.h)
        "cpp.threads": threads,
    }


def direct_calls() -> dict[Any, Sequence[str]]:
    """Operators whose library also exports a C function aoti_torch_cpu_NAME, with its declaration: calling that costs a
    tenth of going through the dispatcher."""
    process = ctypes.CDLL(None)
    found: dict[Any, Sequence[str]] = {}
    for qualified in torch._C._dispatch_get_all_op_names():
        namespace, _, name = qualified.partition("::")
        if namespace != "dsv3rt" or "." in name or not hasattr(process, f"aoti_torch_cpu_{name}"):
            continue
        overload = getattr(torch.ops.dsv3rt, name).default
        if (declaration := _declare(name, overload._schema)) is not None:
            found[overload] = [declaration]
    return found


def _declare(name: str, schema: Any) -> str | None:
    """The C declaration of an operator, results as pointers after the arguments."""
    types = [_C_TYPES.get(str(argument.type)) for argument in schema.arguments]
    results = [str(result.type) for result in schema.returns]
    if None in types or any(result != "Tensor" for result in results):
        return None
    listed = ", ".join([*(kind for kind in types if kind), *["AtenTensorHandle*"] * len(results)])
    return f"AOTITorchError aoti_torch_cpu_{name}({listed})"


def _unpack(archive: Path, folder: Path) -> None:
    """The package's files as the loader wants them in a folder, without the generated sources."""
    with zipfile.ZipFile(archive) as package:
        for name in package.namelist():
            inner = name.partition("/")[2]
            if inner.endswith(".cpp") or ".." in inner:
                continue
            target = folder / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(package.read(name))
            if target.suffix == ".so":
                os.chmod(target, 0o700)

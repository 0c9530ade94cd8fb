"""Direct calls from AOTInductor packages: the C functions behind the operators, as Inductor wants them declared."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from types import MappingProxyType

import torch

_C_TYPES: Mapping[str, str] = MappingProxyType({"Tensor": "AtenTensorHandle", "int": "int64_t", "float": "double"})


def c_shims() -> dict[torch._ops.OpOverload, list[str]]:
    """For `torch._inductor.config.aot_inductor.custom_ops_to_c_shims`: operator -> declaration of its C function.

    Covers the operators of all libraries loaded so far that have an `aoti_torch_cpu_NAME` function. It saves a package
    0.3 us a call, of about 1.2; the package then needs the same libraries loaded before it.
    """
    process = ctypes.CDLL(None)
    shims: dict[torch._ops.OpOverload, list[str]] = {}
    for name in torch._C._dispatch_get_all_op_names():
        space, _, short = name.partition("::")
        if space != "dsv3rt" or not hasattr(process, f"aoti_torch_cpu_{short}"):
            continue
        overload = getattr(torch.ops.dsv3rt, short).default
        arguments = [(str(argument.type), argument.name) for argument in overload._schema.arguments]
        if len(overload._schema.returns) != 1 or any(kind not in _C_TYPES for kind, _ in arguments):
            continue
        parameters = ", ".join(f"{_C_TYPES[kind]} {argument}" for kind, argument in arguments)
        shims[overload] = [f"AOTITorchError aoti_torch_cpu_{short}({parameters}, AtenTensorHandle* result)"]
    return shims

"""C++ kernels without torch headers: building, loading, registering; and the core's own operators.

To write a native library for a plugin: put `*.cpp` (compiled once) and `*.simd.cpp` (compiled once per instruction set)
into a folder, include `dsv3rt_native.h` / `dsv3rt_simd.h` from this package (the headers explain themselves; `csrc/`
here is the smallest complete example), and

    library = load_library("mine", Path(__file__).parent / "csrc")     # None without a compiler: use plain torch then
    if library is not None:
        torch.library.register_fake("dsv3rt::mine", lambda x: torch.empty_like(x))

The operator is `torch.ops.dsv3rt.mine`; torch.compile keeps it in one graph, AOTInductor packages call it too. What a
kernel writes must be fresh tensors, unless the schema says `Tensor(a!)`.

Environment: `DSV3RT_NATIVE=0` turns native kernels off; `DSV3RT_ISA=portable|avx2|avx512|avx512vbmi|amx` forces an
instruction set; `DSV3RT_CACHE` moves the folder of built libraries; `DSV3RT_CXXFLAGS` adds compiler flags.
"""

from __future__ import annotations

from dsv3rt.native.drafts import draw_draft, settle_drafts
from dsv3rt.native.loader import NativeLibrary, load_library
from dsv3rt.native.ops import add_rms_norm, core_library, greatest, read_bandwidth_gbs, rms_norm
from dsv3rt.native.shims import c_shims

__all__ = [
    "NativeLibrary",
    "add_rms_norm",
    "c_shims",
    "core_library",
    "draw_draft",
    "greatest",
    "load_library",
    "read_bandwidth_gbs",
    "rms_norm",
    "settle_drafts",
]

"""Builds the native kernels into the wheel, where a compiler is at hand. Without one the wheel is as good: they are
built on first use, or plain torch computes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARIES = {
    "core": "dsv3rt/native/csrc",
    "fp8": "plugins/dsv3rt_fp8/csrc",
    "mla": "plugins/dsv3rt_mla/csrc",
    "route": "plugins/dsv3rt_moe/csrc",
}
"""Native library -> folder of its sources."""


def _build_module(root: Path) -> ModuleType:
    """dsv3rt/native/build.py, without importing the package (which needs torch)."""
    spec = importlib.util.spec_from_file_location("dsv3rt_native_build", root / "dsv3rt" / "native" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class WheelHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles every library into the `prebuilt` folder beside its sources."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable":
            return
        root = Path(self.root)
        build = _build_module(root)
        for name, folder in LIBRARIES.items():
            source = build.NativeSource(name, root / folder)
            target = build.prebuilt_path(source)
            try:
                compiler = build.find_compiler()
                if compiler is None:
                    raise build.BuildError("no C++ compiler on PATH")
                if not target.exists():
                    build.build(source, target, compiler)
            except build.BuildError as error:
                self.app.display_warning(f"native library {name} is not built now, but on first use: {error}")
                continue
            inside = target.relative_to(root).as_posix().removeprefix("plugins/")
            build_data["force_include"][str(target)] = inside
            build_data["pure_python"] = False
            build_data["infer_tag"] = True

"""dsv3rt: run, study and extend DeepSeek-V3-family models on one machine.

The public names are imported when first used: `dsv3rt --help` must not wait for torch.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from dsv3rt.errors import UserError

if TYPE_CHECKING:
    from dsv3rt.bundled import bundled_checkpoint
    from dsv3rt.config import ModelConfig
    from dsv3rt.hookspecs import hookimpl
    from dsv3rt.runtime import Runtime, load

__all__ = ["ModelConfig", "Runtime", "UserError", "bundled_checkpoint", "hookimpl", "load"]
__version__ = "0.1.0"

# torch's threads spin while they wait for work; for up to 10 ms by default, which on a machine with anything else to do
# takes the core from the very thread that is waited for. Half a millisecond bridges the gaps within a decode step.
# Read when torch is loaded, so it must be said here.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def __getattr__(name: str) -> Any:
    places = {
        "ModelConfig": "config",
        "Runtime": "runtime",
        "bundled_checkpoint": "bundled",
        "hookimpl": "hookspecs",
        "load": "runtime",
    }
    if name not in places:
        raise AttributeError(f"module 'dsv3rt' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dsv3rt.{places[name]}"), name)

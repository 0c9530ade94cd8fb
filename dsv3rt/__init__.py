"""dsv3rt: run, study and extend DeepSeek-V3-family models on one machine."""

from __future__ import annotations

from dsv3rt.errors import UserError
from dsv3rt.hookspecs import hookimpl

__all__ = ["UserError", "hookimpl"]
__version__ = "0.1.0"

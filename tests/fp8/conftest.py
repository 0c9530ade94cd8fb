"""Tests of kernels run on each instruction set the machine has."""

from __future__ import annotations

import pytest
from dsv3rt_fp8 import native_ops

from dsv3rt.native.loader import NativeLibrary


@pytest.fixture
def library() -> NativeLibrary | None:
    """Whose instruction sets `variant` goes through."""
    return native_ops.library()

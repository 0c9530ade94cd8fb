"""Tests of kernels run on each instruction set the machine has."""

from __future__ import annotations

import pytest
from dsv3rt_fp8 import native_ops

from dsv3rt.native.loader import NativeLibrary


@pytest.fixture
def library() -> NativeLibrary | None:
    """Whose instruction sets `variant` goes through."""
    return native_ops.library()


@pytest.fixture
def packs(variant: str) -> str:
    """An instruction set whose kernels read packed weights."""
    if not native_ops.reads_packed():
        pytest.skip("it reads no packed weights")
    return variant

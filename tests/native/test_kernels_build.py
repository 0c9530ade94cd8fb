"""The project's own kernels."""

from __future__ import annotations

from collections.abc import Callable

import dsv3rt_fp8.native_ops
import dsv3rt_mla.native
import dsv3rt_moe.native
import pytest

from dsv3rt.native import build
from dsv3rt.native.loader import NativeLibrary

LIBRARIES = [dsv3rt_fp8.native_ops.library, dsv3rt_mla.native.library, dsv3rt_moe.native.library]


@pytest.mark.skipif(build.find_compiler() is None, reason="no compiler")
@pytest.mark.parametrize("library", LIBRARIES, ids=["fp8", "mla", "moe"])
def test_they_build_where_there_is_a_compiler(library: Callable[[], NativeLibrary | None]) -> None:
    """Elsewhere their tests are skipped, and must not be here."""
    assert library() is not None

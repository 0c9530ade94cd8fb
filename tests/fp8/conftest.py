"""Tests of kernels run on each instruction set the machine has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from dsv3rt_fp8 import native_ops

from dsv3rt.native.build import VARIANTS


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    """One instruction set of the native kernels, selected for the test."""
    library = native_ops.library()
    if library is None or request.param not in library.variants:
        pytest.skip("not on this machine")
    before = library.select_variant(request.param)
    yield request.param
    library.select_variant(before)

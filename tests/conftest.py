"""What the tests of all packages share: where they start from, and kernels of one instruction set after another."""

from __future__ import annotations

from collections.abc import Iterator

import dsv3rt  # noqa: F401  before torch, as for users: it says how torch's threads wait

# isort: split
import pytest
import torch

from dsv3rt.native.build import VARIANTS
from dsv3rt.native.loader import NativeLibrary

THREADS = torch.get_num_threads()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Beside one another, the files that take long come first: in the end there is something small for who is free."""
    if hasattr(config, "workerinput"):
        long = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in long)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """The same for a test, and for what is made for it, whichever tests came before it in its process: its random
    numbers, and one thread. Models this small are slower on several, most of all beside other tests."""
    torch.manual_seed(0)
    torch.set_num_threads(THREADS if item.get_closest_marker("threads") else 1)


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, library: NativeLibrary | None) -> Iterator[str]:
    """Each instruction set the machine has, selected for the test in `library`: a fixture that stands beside it."""
    if library is None or request.param not in library.variants:
        pytest.skip("not on this machine")
    before = library.select_variant(request.param)
    yield request.param
    library.select_variant(before)

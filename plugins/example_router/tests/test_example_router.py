"""How a plugin's author tests a router."""

from pathlib import Path

from dsv3rt.testing import check_router

PLUGIN = Path(__file__).parents[1] / "example_router.py"


def test_it_honours_the_contract_of_the_slot() -> None:
    check_router("noisy_topk:noise=0.3", plugins=[PLUGIN])

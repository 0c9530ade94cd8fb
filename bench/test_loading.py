"""Phase: from a folder to a model whose weights are mapped. Its time grows with the tensors, not with their bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dsv3rt.runtime import load
from dsv3rt.testing import preset, random_checkpoint
from dsv3rt.weights import Checkpoint
from dsv3rt.weights.prefault import prefault


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few bytes, many tensors: 1,600 of them."""
    config = preset("tiny", layers=5, mtp=0) | {"n_routed_experts": 64, "moe_intermediate_size": 32}
    return random_checkpoint(tmp_path_factory.mktemp("bench") / "made", config, fp8=True, shards=4)


def test_open(benchmark: Any, checkpoint: Path) -> None:
    """Headers read and checked."""
    assert len(benchmark(Checkpoint, checkpoint).names()) > 1500


def test_get_every_tensor(benchmark: Any, checkpoint: Path) -> None:
    source = Checkpoint(checkpoint)
    benchmark(lambda: [source.get(name) for name in source.names()])


def test_prefault_of_cached_pages(benchmark: Any, checkpoint: Path) -> None:
    assert benchmark(prefault, Checkpoint(checkpoint).infos.values())


def test_load(benchmark: Any, checkpoint: Path) -> None:
    """The whole way, but for compiling."""
    runtime = benchmark(load, checkpoint, compile="off", head="none")
    assert runtime.plan.dtype in (torch.float32, torch.bfloat16)

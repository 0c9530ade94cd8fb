"""How long compiling takes, from an empty store: it must grow with the kinds of blocks, not with their number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import dsv3rt
from dsv3rt.compile.engine import Engine
from dsv3rt.generate.sequence import Sequence
from dsv3rt.testing.presets import preset
from dsv3rt.testing.synth import random_checkpoint


@pytest.mark.parametrize("layers", [8, 32])
def test_blocks_are_compiled_once_a_kind(benchmark: Any, tmp_path: Path, layers: int) -> None:
    """Seconds until a decode step runs compiled, side process and all, in a model of `layers` blocks of two kinds."""
    random_checkpoint(tmp_path / "model", preset("tiny", layers=layers))
    decoder = dsv3rt.load(tmp_path / "model", compile="off", head="none", max_context=256).engine.decoder

    def compile_all() -> None:
        engine = Engine(decoder, "block", cache_folder=tmp_path / "graphs", jobs=2)
        sequence = Sequence(engine, 256, next(decoder.parameters()).device)
        sequence.extend([1])
        assert engine.wait(300)
        sequence.extend([1])
        assert engine.counters.compiled == layers
        engine.close()

    benchmark.pedantic(compile_all, rounds=1, iterations=1)

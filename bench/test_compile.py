"""How long compiling takes, from an empty store: it must grow with the kinds of blocks, not with their number; and how
long a start takes, of a process of its own, until the first token and until decoding runs compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import dsv3rt
from dsv3rt import cache_folder
from dsv3rt.compile.engine import Engine
from dsv3rt.generate.sequence import Sequence
from dsv3rt.testing.presets import preset
from dsv3rt.testing.synth import random_checkpoint


@pytest.mark.parametrize("layers", [8, 32])
def test_blocks_are_compiled_once_a_kind(benchmark: Any, tmp_path: Path, layers: int) -> None:
    """Seconds until a decode step runs compiled, side process and all, in a model of `layers` blocks of two kinds."""
    if layers > 8 and benchmark.disabled:
        pytest.skip("without timing the same as fewer layers")
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


STARTING = Path(__file__).parent / "starting.py"
BUNDLED = Path(__file__).parents[1] / "checkpoints" / "dsv3rt-mini"


@pytest.mark.parametrize("model", ["bundled", "27 layers", "small"])
def test_a_start(benchmark: Any, tmp_path: Path, model: str) -> None:
    """A start with an empty cache and the next one; `extra_info` has the seconds from the start of each process. Native
    kernels are there, as after an installation."""
    if os.environ.get("DSV3RT_BENCH_COMPILE") == "off":
        pytest.skip("nothing is to be compiled")
    checkpoint = BUNDLED
    if model == "small":
        checkpoint = random_checkpoint(tmp_path / "model", preset("small"), fp8=True)
    elif model != "bundled":
        checkpoint = random_checkpoint(tmp_path / "model", preset("tiny", layers=27))
    dsv3rt.load(checkpoint, compile="off", max_context=256)  # builds the kernels, should they not be there
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "kernels").symlink_to(cache_folder.root() / "kernels")
    environment = {**os.environ, "DSV3RT_CACHE": str(tmp_path / "cache")}

    def start() -> dict[str, Any]:
        command = [sys.executable, str(STARTING), str(checkpoint), repr(time.monotonic())]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=280)
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    reports = benchmark.pedantic(lambda: (start(), start()), rounds=1, iterations=1)
    benchmark.extra_info.update(zip(("without graphs", "with graphs"), reports, strict=True))

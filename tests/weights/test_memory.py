"""Peak memory while loading and running a bf16 checkpoint: 1.15 times its size and 1 GB, no second copy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsv3rt.testing import preset, random_checkpoint
from dsv3rt.weights import Checkpoint

RUN = """
import sys
from dsv3rt.generate.results import peak_rss_bytes
from dsv3rt.runtime import load

runtime = load(sys.argv[1], compile="off", head="none", max_context=512)
generation = runtime.generate(list(range(2, 40)), max_tokens=4, temperature=0, ignore_eos=True)
assert len(generation.token_ids) == 4
print(peak_rss_bytes())
"""


@pytest.mark.slow
def test_peak_memory_of_a_bf16_checkpoint(tmp_path: Path) -> None:
    """Large enough that a second copy would not fit into the gigabyte."""
    folder = random_checkpoint(tmp_path / "made", preset("small", layers=14, mtp=0))
    size = Checkpoint(folder).total_bytes
    assert size > 1.5e9
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder)],
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) <= 1.15 * size + 1e9, f"{int(done.stdout) / size:.2f} of its size"

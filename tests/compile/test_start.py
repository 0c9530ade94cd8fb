"""A start does not wait for the compiler."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import dsv3rt
runtime = dsv3rt.load(dsv3rt.bundled_checkpoint())
for temperature in (0, 0.7):
    runtime.generate([7, 5, 3] * 20, max_tokens=12, temperature=temperature, ignore_eos=True)
print(*(name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules))
"""


def test_answering_imports_nothing_of_the_compiler() -> None:
    """That takes two seconds: they are the side process's."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=240)
    assert done.stdout.strip() == ""

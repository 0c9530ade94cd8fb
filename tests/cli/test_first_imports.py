"""Ctrl-C before a command has begun."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

STARTED = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
"""A shell that starts the tests in the background has Ctrl-C ignored, and children inherit that."""
SLOW = """
import sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == WANTED:
            print("here", flush=True)
            time.sleep(20)
sys.meta_path.insert(0, Slow())
from dsv3rt.__main__ import main
sys.argv = ["dsv3rt", "plugins"]
main()
"""


@pytest.mark.parametrize("module", ["dsv3rt.cli.main", "click"])
def test_ctrl_c_amid_the_first_imports_is_silent(module: str) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", STARTED + SLOW.replace("WANTED", repr(module))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None and program.stdout.readline() == "here\n"
    program.send_signal(signal.SIGINT)
    _, errors = program.communicate(timeout=120)
    assert (program.returncode, errors) == (130, "")

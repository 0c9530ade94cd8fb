"""The README's Python runs, on the bundled checkpoint, in one process from top to bottom."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dsv3rt.cli.main import run

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall(README.read_text()) if kind == language]


@pytest.mark.slow
def test_python_snippets(tmp_path: Path) -> None:
    assert len(blocks("python")) >= 2
    for code in blocks("python"):
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip(), "a snippet shows something"


def test_every_command_and_flag_in_the_readme_exists(capfd: pytest.CaptureFixture[str]) -> None:
    lines = [
        line.split("#")[0].split() for code in blocks("sh") for line in code.splitlines() if line.startswith("dsv3rt ")
    ]
    assert lines
    for words in lines:
        assert run([words[1], "--help"]) == 0, words
        shown = capfd.readouterr().out
        for flag in (word for word in words if re.fullmatch(r"-{1,2}[a-z][\w-]*", word)):
            assert re.search(rf"(^|[\s,]){re.escape(flag)}\b", shown), f"{' '.join(words)}: no flag {flag}"

"""`dsv3rt plugins`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsv3rt.cli.main import run

PLUGIN = """
from dsv3rt import hookimpl

@hookimpl
def register_routing(register):
    register("mine", None)

@hookimpl
def plan_resolved(plan):
    pass
"""


def test_lists_what_is_installed_and_given(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    assert run(["plugins", "--plugin", str(tmp_path / "mine.py"), "--json"]) == 0
    found = {plugin["name"]: plugin for plugin in json.loads(capfd.readouterr().out)["plugins"]}
    assert "mla" in found["mla"]["registers"]["attention"]
    assert found["mine"]["registers"] == {"routing": ["mine"]} and found["mine"]["hooks"] == ["plan_resolved"]
    assert run(["plugins", "--plugin", str(tmp_path / "mine.py")]) == 0
    assert "routing: mine" in capfd.readouterr().out


def test_a_broken_file_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    assert run(["plugins", "--plugin", str(tmp_path / "broken.py")]) == 1
    err = capfd.readouterr().err
    assert "ZeroDivisionError" in err and len(err.splitlines()) == 1

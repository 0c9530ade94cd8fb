"""A small checkpoint for every command, made once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_cases import TINY

from dsv3rt.cli.main import run
from dsv3rt.testing import random_checkpoint


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a byte-level tokenizer; a context of 128."""
    return random_checkpoint(tmp_path_factory.mktemp("tiny") / "made", TINY, tokenizer=True)


@pytest.fixture(scope="session")
def tiny_bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FP8, in shards, with no tokenizer."""
    return random_checkpoint(tmp_path_factory.mktemp("bare") / "made", TINY, fp8=True, shards=2)


@pytest.fixture
def as_json(capfd: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run a command with --json: its object, the only thing on stdout."""

    def call(*arguments: str, code: int = 0) -> dict[str, Any]:
        capfd.readouterr()
        assert run([*arguments, "--json"]) == code
        found = json.loads(capfd.readouterr().out)
        assert isinstance(found, dict)
        return found

    return call

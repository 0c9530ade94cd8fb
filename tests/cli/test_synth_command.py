"""`dsv3rt synth`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsv3rt.cli.main import run
from dsv3rt.config import ModelConfig


def test_makes_a_checkpoint(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "synth",
        "tiny",
        str(tmp_path / "t"),
        "--fp8",
        "--layers",
        "2",
        "--mtp",
        "0",
        "--max-shard-size",
        "2MB",
    ]
    assert run([*arguments, "--tokenizer", "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    files = list((tmp_path / "t").glob("*.safetensors"))
    assert facts["files"] == len(files) > 1
    assert facts["bytes"] < sum(file.stat().st_size for file in files)
    config = ModelConfig.from_folder(tmp_path / "t")
    assert config.num_hidden_layers == 2 and config.num_nextn_predict_layers == 0 and config.quantization is not None
    assert (tmp_path / "t" / "tokenizer.json").is_file()


def test_refusals(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for arguments, code, words in [
        (["enormous", "a"], 2, "unknown preset 'enormous'"),
        (["tiny", "full"], 1, "exists already"),
        (["tiny", "/proc/nothing/x"], 1, "cannot be made"),
        (["tiny", "b", "--layers", "0"], 2, "not at least 1"),
        (["v2-lite", "b", "--mtp", "1"], 2, "cannot have"),
    ]:
        assert run(["synth", arguments[0], str(tmp_path / arguments[1]), *arguments[2:]]) == code
        err = capfd.readouterr().err
        assert words in err and len(err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]

"""Broken checkpoints through the real command line: one line, exit code 1, no traceback, nothing written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_cases import PLAIN
from safetensors.torch import load_file, save_file

from dsv3rt.cli.main import run

SHARD = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def shard_of(folder: Path, name: str) -> Path:
    file = json.loads((folder / INDEX).read_text())["weight_map"][name]
    assert isinstance(file, str)
    return folder / file


def drop(folder: Path, name: str) -> None:
    """Remove a tensor from its shard and from the index."""
    file = shard_of(folder, name)
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file)
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"][name]
    (folder / INDEX).write_text(json.dumps(index))


def reshape(folder: Path, name: str) -> None:
    file = shard_of(folder, name)
    tensors = load_file(file)
    tensors[name] = torch.cat([tensors[name].view(torch.uint8)] * 2).view(tensors[name].dtype)
    save_file(tensors, file)


def only_pickles(folder: Path) -> None:
    for file in [*folder.glob("*.safetensors"), folder / INDEX]:
        file.unlink()
    torch.save({"lm_head.weight": torch.ones(1)}, folder / "pytorch_model.bin")


def remap(folder: Path, name: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = name
    (folder / INDEX).write_text(json.dumps(index))


def truncate(folder: Path) -> None:
    os.truncate(folder / SHARD, (folder / SHARD).stat().st_size - 100)


GATE = "model.layers.1.mlp.gate.weight"
EXPERT = "model.layers.1.mlp.experts.5.up_proj.weight"

BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated shard": (truncate, "is truncated"),
    "missing shard": (lambda folder: (folder / SHARD).unlink(), f"missing from .*{SHARD}"),
    "missing tensor": (lambda folder: drop(folder, GATE), f"{GATE} is missing"),
    "missing expert": (lambda folder: drop(folder, EXPERT), f"{EXPERT} is missing"),
    "wrong shape": (lambda folder: reshape(folder, "model.norm.weight"), r"norm.weight has shape \[512\].*\[256\]"),
    "wrong matrix shape": (lambda folder: reshape(folder, EXPERT), f"{EXPERT} has shape"),
    "missing scale": (lambda folder: drop(folder, f"{EXPERT}_scale_inv"), "scale.*missing"),
    "wrong scale shape": (lambda folder: reshape(folder, f"{EXPERT}_scale_inv"), "scale_inv has shape"),
    "index leads out": (lambda folder: remap(folder, "../../x.safetensors"), "outside the folder"),
    "index to a pickle": (lambda folder: remap(folder, "pytorch_model.bin"), "only safetensors"),
    "malformed index": (lambda folder: (folder / INDEX).write_text("{"), "not readable JSON"),
    "malformed config": (lambda folder: (folder / "config.json").write_text("{"), "not readable JSON"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "config of another kind": (lambda folder: edit(folder, model_type="llama"), "model_type = 'llama' is unknown"),
    "unknown maths": (lambda folder: edit(folder, hidden_act="gelu"), "hidden_act"),
    "unknown key": (lambda folder: edit(folder, secret_sauce=3), "secret_sauce"),
    "wrong number": (lambda folder: edit(folder, hidden_size="big"), "hidden_size"),
    "other hidden size": (lambda folder: edit(folder, hidden_size=128), "has shape"),
    "pickles only": (only_pickles, "refused, pickle"),
    "malformed generation config": (
        lambda folder: (folder / "generation_config.json").write_text("[["),
        "generation_config.json",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_one_line_and_nothing_written(
    name: str, tiny_bare: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_bare, folder)
    damage, complaint = BREAKS[name]
    damage(folder)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert run(["generate", str(folder), "--prompt-ids", "1,2", "-n", "2", *PLAIN]) == (
        2 if "generation" in name else 1
    )
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert out == "" and len(lines) == 1 and "Traceback" not in err
    assert re.search(complaint, lines[0]), lines[0]
    assert lines[0].endswith(")"), "it says the way out"
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_in_a_process_of_its_own(tiny_bare: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_bare, folder)
    truncate(folder)
    code = "from dsv3rt.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "generate", str(folder), "--prompt-ids", "1", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "is truncated" in done.stderr

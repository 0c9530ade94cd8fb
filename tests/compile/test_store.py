"""The store of compiled graphs: whole or not there, bounded, shared between processes."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsv3rt.cli.main import run
from dsv3rt.compile.store import GraphStore


def put(store: GraphStore, key: str, content: bytes = b"code") -> None:
    with store.building() as scratch:
        files = scratch / "files"
        (files / "data").mkdir(parents=True)
        (files / "data" / "model.so").write_bytes(content)
        store.add(key, files, {"module": "Block", "output": "tensor"})


def test_an_entry_is_found_again(tmp_path: Path) -> None:
    put(GraphStore(tmp_path), "k", b"abc")
    entry = GraphStore(tmp_path).find("k")
    assert entry is not None and entry.info["module"] == "Block"
    assert (entry.folder / "data" / "model.so").read_bytes() == b"abc"
    assert GraphStore(tmp_path).find("other") is None
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "nothing is left of the building"


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "description"])
def test_a_damaged_entry_is_discarded_with_one_line(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = GraphStore(tmp_path)
    put(store, "k", bytes(1000))
    code, description = tmp_path / "k" / "data" / "model.so", tmp_path / "k" / "entry.json"
    if damage == "flipped":
        code.write_bytes(bytes(500) + b"\1" + bytes(499))
    elif damage == "truncated":
        code.write_bytes(bytes(10))
    elif damage == "missing":
        code.unlink()
    else:
        description.write_text('{"files": {')
    with caplog.at_level(logging.WARNING):
        assert store.find("k") is None
    assert len(caplog.records) == 1 and "damaged" in caplog.text
    assert not (tmp_path / "k").exists()
    put(store, "k")
    assert store.find("k") is not None


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    store = GraphStore(tmp_path, limit_bytes=3000)
    for age, key in ((300, "old"), (200, "mid")):
        put(store, key, bytes(1000))
        then = time.time() - age
        os.utime(tmp_path / key / "entry.json", (then, then))
    assert store.find("old") is not None, "finding is using"
    put(store, "new", bytes(1000))
    assert {entry.key for entry in store.entries()} == {"old", "new"}
    put(store, "huge", bytes(5000))
    assert {entry.key for entry in store.entries()} == {"huge"}, "what was just made stays"


WRITER = """
import sys, time
from pathlib import Path
from dsv3rt.compile.store import GraphStore
store = GraphStore(Path(sys.argv[1]))
with store.only_builder("k"), store.building() as scratch:
    files = scratch / "files"
    files.mkdir()
    (files / "model.so").write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(float(sys.argv[2]))
    store.add("k", files, {"output": "tensor"})
"""


def writer(folder: Path, seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    return process


def test_killed_in_mid_write_leaves_nothing_that_matters(tmp_path: Path) -> None:
    with writer(tmp_path, 60) as process:
        process.send_signal(signal.SIGKILL)
    store = GraphStore(tmp_path)
    assert store.find("k") is None
    with store.only_builder("k"):  # the lock went with its holder
        put(store, "k")
    assert store.find("k") is not None
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".building-")], "the remains were swept"


def test_the_second_of_two_processes_waits_and_finds_it(tmp_path: Path) -> None:
    with writer(tmp_path, 1.0):
        store = GraphStore(tmp_path)
        assert store.find("k") is None, "half an entry is not seen"
        with store.only_builder("k"):
            assert store.find("k") is not None


def test_cache_list_and_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DSV3RT_CACHE", str(tmp_path))
    put(GraphStore(), "k")
    (tmp_path / "common").mkdir()
    (tmp_path / "graphs" / ".interface-0.o").write_bytes(b"of an earlier version")
    dead = subprocess.Popen(["true"])
    dead.wait()
    for owner in (dead.pid, os.getpid()):
        (tmp_path / "graphs" / f".building-{owner}-x").mkdir()
    assert run(["cache", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["folder"] == str(tmp_path / "graphs") and [g["key"] for g in listed["graphs"]] == ["k"]
    assert run(["cache", "list"]) == 0
    assert "Block" in capsys.readouterr().out
    assert run(["cache", "clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graphs"]
    assert [path.name for path in (tmp_path / "graphs").iterdir()] == [f".building-{os.getpid()}-x"], "still at work"

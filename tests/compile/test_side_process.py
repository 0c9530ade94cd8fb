"""The side process and the store, where things go wrong: killed, raced, out of room, not allowed to write, damaged.

Legend: N rows, D columns.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dsv3rt import cache_folder
from dsv3rt.compile import export
from dsv3rt.compile.jobs import CommonJob, send
from dsv3rt.compile.live import LiveCompiler
from dsv3rt.compile.program import Program, Shared
from dsv3rt.compile.service import Compiler
from dsv3rt.compile.spec import spec_of
from dsv3rt.compile.store import GraphStore

pytestmark = pytest.mark.slow
X_ND = torch.arange(16.0).reshape(2, 8)


def program(folder: Path, columns: int = 8) -> Program:
    """A small module, the first call of which waits for its graph."""
    torch.manual_seed(0)
    return Program(nn.Linear(8, columns).eval(), Shared(Compiler(GraphStore(folder), 1), LiveCompiler(), wait=True))


def call(asked: Program) -> bool:
    """Call it: whether that ran compiled. Its result must be right in any case."""
    with torch.inference_mode():
        torch.testing.assert_close(asked(X_ND), asked.module(X_ND))
    asked.shared.compiler.close()
    return asked.shared.counters.compiled == 1 and asked.shared.counters.uncompiled == 0


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


ASKER = """
import json, logging, sys
from pathlib import Path
sys.path[:0] = [HERE]
logging.basicConfig(format="%(message)s")
import test_side_process as given
asked = [given.program(Path(sys.argv[1]), columns) for columns in (8, 16)]
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps([given.call(one) for one in asked]))
"""


def asker(folder: Path, *before: str, **options: Any) -> subprocess.Popen[str]:
    """A process that calls two such programs once it is told to go on."""
    code = "\n".join([*before, ASKER.replace("HERE", repr(str(Path(__file__).parent)))])
    pipe = subprocess.PIPE
    started = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=pipe, stdout=pipe, stderr=pipe, text=True, **options
    )
    assert started.stdout is not None and started.stdout.readline() == "ready\n"
    return started


def test_two_processes_want_the_same_graphs_at_once(tmp_path: Path) -> None:
    first, second = asker(tmp_path), asker(tmp_path)
    for process in (first, second):
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in (first, second):
        out, errors = process.communicate(timeout=240)
        assert (json.loads(out), errors) == ([True, True], "")
    assert len(GraphStore(tmp_path).entries()) == 2
    until(lambda: left_in(tmp_path) == [])  # their compilers may end a moment after them


def building(folder: Path) -> bool:
    return any(name.startswith(".building-") for name in left_in(folder))


def scratch_of(pid: int) -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"dsv3rt-compile-{pid}-*"))


def compiling(compiler: Compiler) -> bool:
    """Whether the C++ compiler has something to do, or has had."""
    process = compiler._process
    return process is not None and any(next(path.rglob("*.wrapper.cpp"), None) for path in scratch_of(process.pid))


@pytest.mark.parametrize("moment", ["started", "compiling"])
def test_killed_in_mid_compile(tmp_path: Path, moment: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever waits goes on uncompiled, after one line; the next start makes the graph and clears up."""
    asked = program(tmp_path)
    compiler = asked.shared.compiler
    spec = spec_of((X_ND,), {})
    assert spec is not None
    asked.prepare(X_ND)
    reached: Callable[[], bool] = {
        "started": lambda: compiler._process is not None,
        "compiling": lambda: compiling(compiler),
    }[moment]
    until(reached)
    assert compiler._process is not None
    killed = compiler._process.pid
    os.killpg(killed, signal.SIGKILL)
    with caplog.at_level(logging.WARNING):
        assert not call(asked)
    assert ["died" in record.message for record in caplog.records] == [True]
    assert GraphStore(tmp_path).entries() == []
    assert call(program(tmp_path))
    assert left_in(tmp_path) == [] and scratch_of(killed) == []


def test_told_to_end_in_the_middle_of_a_fork(tmp_path: Path) -> None:
    """There, exceptions of signal handlers are lost."""
    told = "os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGTERM))"
    code = f"import os, signal; {told}; from dsv3rt.compile import worker; worker.main()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as worker:
        assert worker.stdin is not None
        send(CommonJob(tmp_path), worker.stdin)
        try:
            assert worker.wait(240) == 0
        finally:
            worker.kill()
    assert scratch_of(worker.pid) == [] and left_in(tmp_path) == []


def test_what_graphs_share_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    monkeypatch.setattr(export, "build_package", lambda *args, **options: made.append(args[3]))
    for name in ("first", "second"):
        export.build_common(tmp_path / name, tmp_path / "common")
    assert made == [tmp_path / "first" / "files"]


def test_who_asked_is_killed(tmp_path: Path) -> None:
    """What was being made is there at the next start."""
    with asker(tmp_path) as process:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        until(lambda: building(tmp_path))
        process.kill()
    until(lambda: len(GraphStore(tmp_path).entries()) == 1 and left_in(tmp_path) == [])
    asked = program(tmp_path)
    assert call(asked) and asked.shared.compiler.started is None


def test_who_asked_ends_at_once(tmp_path: Path) -> None:
    """Before the side process has imported its compiler."""
    code = "; ".join(
        [
            f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]",
            "from pathlib import Path; import test_side_process as given",
            "given.program(Path(sys.argv[1])).prepare(given.X_ND)",
        ]
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=240)
    assert not GraphStore(tmp_path).entries()
    until(lambda: len(GraphStore(tmp_path).entries()) == 1 and left_in(tmp_path) == [])


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not reached():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


def test_no_room_costs_one_line(tmp_path: Path) -> None:
    """Files of more than a few kilobytes cannot be written: the same as on a full disk. Nobody waits for the rest."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))"
    with asker(tmp_path, limit) as process:
        out, errors = process.communicate("go\n", timeout=240)
    assert json.loads(out) == [False, False]
    assert [("stays so: File too large" in line, str(tmp_path) in line) for line in errors.splitlines()] == [
        (True, True)
    ] * 2  # each of the two has a compiler of its own
    assert left_in(tmp_path) == []


def test_a_store_that_cannot_be_written_is_replaced_for_the_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with asker(tmp_path / "file" / "graphs", env={**os.environ, "TMPDIR": str(tmp_path)}) as process:
        out, errors = process.communicate("go\n", timeout=240)
    assert json.loads(out) == [True, True]
    assert len(errors.splitlines()) == 1 and f"{tmp_path}/file/graphs cannot be written" in errors
    assert list(tmp_path.glob("dsv3rt-*")) == [], "what stood in is gone with the process"


def test_a_graph_that_does_not_load_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = program(tmp_path)
    spec = spec_of((X_ND,), {})
    assert spec is not None
    store = GraphStore(tmp_path)
    with store.building() as scratch:
        (scratch / "files").mkdir()
        (scratch / "files" / "model.so").write_bytes(b"no library")
        store.add(asked.key(spec), scratch / "files", {"operators": [], "output": "tensor"})
    with caplog.at_level(logging.WARNING):
        assert call(asked)
    assert ["made again" in record.message for record in caplog.records] == [True]
    assert cache_folder.listed(tmp_path / asked.key(spec) / "data")

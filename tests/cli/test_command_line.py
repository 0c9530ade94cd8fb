"""The command line's shell: lazy commands, one-line errors, exit codes."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import click
import pytest

from dsv3rt import __version__, hookimpl, plugin_manager
from dsv3rt.cli import main as main_module
from dsv3rt.cli.declared import GROUP
from dsv3rt.cli.interrupt import ctrl_c_leaves
from dsv3rt.cli.main import LazyGroup, make_cli, run
from dsv3rt.errors import CheckpointError, PluginError, UsageError
from dsv3rt.plugin_manager import discover


@pytest.fixture
def probe() -> LazyGroup:
    """The real group with an added command that fails as asked."""

    @click.command("probe")
    @click.argument("how")
    def probe(how: str) -> None:
        failures: dict[str, BaseException] = {
            "user": CheckpointError("it broke\nbadly", fix="mend it"),
            "usage": UsageError("wrong"),
            "bug": RuntimeError("two\nlines"),
            "interrupt": KeyboardInterrupt(),
            "pipe": BrokenPipeError(),
            "memory": MemoryError(),
            "disk": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            "torch's memory": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        }
        if how in failures:
            raise failures[how]
        click.echo(how)

    group = make_cli()
    group.add_command(probe)
    return group


def test_without_a_command_it_explains_itself(capfd: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("Usage: dsv3rt") and "\n  chat " in err and "error" not in err


@pytest.mark.parametrize(
    ("how", "code", "line"),
    [
        ("user", 1, "error: it broke badly (mend it)"),
        ("usage", 2, "error: wrong"),
        ("bug", 1, "error: unexpected RuntimeError: two lines (DSV3RT_DEBUG=1 shows the traceback)"),
        ("interrupt", 130, ""),
        ("disk", 1, "error: cannot write the output: No space left on device (free some space)"),
        ("memory", 1, "error: out of memory (a smaller -c/--ctx-size or model may fit; `dsv3rt inspect` tells)"),
        (
            "torch's memory",
            1,
            "error: out of memory (a smaller -c/--ctx-size or model may fit; `dsv3rt inspect` tells)",
        ),
    ],
)
def test_errors_are_one_line(
    probe: LazyGroup, capfd: pytest.CaptureFixture[str], how: str, code: int, line: str
) -> None:
    assert run(["probe", how], probe) == code
    out, err = capfd.readouterr()
    assert out == "" and err.strip() == line


def test_debug_shows_the_traceback(
    probe: LazyGroup, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSV3RT_DEBUG", "1")
    assert run(["probe", "bug"], probe) == 1
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspekt"], "did you mean inspect?"),
        (["synth", "--nope"], "No such option"),
        (["synth"], "Missing argument"),
        (["synth", "tiny", "x", "--max-shard-size", "huge"], "not a size"),
        (["completion", "tcsh"], "'tcsh' is not one of"),
    ],
)
def test_usage_errors(capfd: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert run(arguments) == 2
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and err.startswith("error: ")
    assert words in err


def test_every_listed_command_exists_and_helps(capfd: pytest.CaptureFixture[str]) -> None:
    files = {
        path.stem for path in Path(main_module.__file__).parent.glob("*.py") if "@click.command" in path.read_text()
    }
    assert files == {*main_module._COMMANDS}
    for name, line in main_module._COMMANDS.items():
        command = importlib.import_module(f"dsv3rt.cli.{name}").command
        assert command.name == name
        assert {"--json"} <= {option for parameter in command.params for option in parameter.opts}, name
        assert run([name, "--help"]) == 0
        assert "dsv3rt" in capfd.readouterr().out
        assert line.endswith(".")


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capfd.readouterr().out.startswith(f"dsv3rt {__version__} (torch 2.")


def test_commands_do_not_clash() -> None:
    group = make_cli()
    group.add_command(click.Command("mine"))
    for name in ("synth", "mine"):
        with pytest.raises(PluginError, match=f"'{name}' is claimed twice"):
            group.add_command(click.Command(name))


def test_plugins_add_commands(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Listed from packaging metadata and source text alone; imported when used."""

    class Adds:
        @hookimpl
        def register_commands(self, cli: click.Group) -> None:
            cli.add_command(click.Command("sing", callback=lambda: click.echo("singing"), help="Sing it."))

    package = tmp_path / "a_plugin"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError")
    (package / "command.py").write_text('"""`dsv3rt sing`: a song\nfor two."""')
    monkeypatch.syspath_prepend(tmp_path)
    entries = [
        metadata.EntryPoint("sing", module, GROUP) for module in ("a_plugin.command", "a_plugin", "absent.command")
    ]
    for entry, line in zip(entries, ("A song for two.", "From plugin a_plugin.", "From plugin absent."), strict=True):
        monkeypatch.setattr(metadata, "entry_points", lambda group, entry=entry: [entry])
        assert run(["--help"]) == 0
        assert "sing" in (shown := capfd.readouterr().out) and line in shown
    monkeypatch.setattr(plugin_manager, "discover", lambda: discover([Adds()]))
    assert run(["sing"]) == 0
    assert capfd.readouterr().out == "singing\n"
    assert run(["sng"]) == 2
    assert "did you mean sing?" in capfd.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(capfd: pytest.CaptureFixture[str], shell: str) -> None:
    assert run(["completion", shell]) == 0
    script = capfd.readouterr().out
    assert f"_DSV3RT_COMPLETE={shell}_complete" in script
    assert run(["completion", shell, "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"shell": shell, "script": script.strip()}


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


def test_help_and_completion_import_no_torch() -> None:
    code = "import sys; from dsv3rt.cli.main import run; c = run([{}]); assert 'torch' not in sys.modules; sys.exit(c)"
    helped = python(code.format("'--help'"))
    assert helped.returncode == 0, helped.stderr
    assert all(name in helped.stdout for name in main_module._COMMANDS)
    completed = python(code.format("'in'"), _DSV3RT_COMPLETE="bash_complete", COMP_WORDS="dsv3rt in", COMP_CWORD="1")
    assert "inspect" in completed.stdout, completed.stderr
    assert "torch" not in completed.stderr


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    code = "import sys; from dsv3rt.cli.main import main; sys.argv = ['dsv3rt', 'completion', 'bash']; main()"
    program = subprocess.Popen(
        [sys.executable, "-c", f"import time; time.sleep(0.3); {code}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert program.stdout is not None and program.stderr is not None
    program.stdout.close()
    assert program.stderr.read() == b""
    assert program.wait(120) == 1


def test_ctrl_c_while_loading_cannot_be_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with ctrl_c_leaves(), contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        assert left == [130]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)

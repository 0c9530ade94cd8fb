"""`dsv3rt chat` end to end on a random checkpoint: one question, JSON, a real terminal, Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsv3rt.cli.main import run

FLAGS = ("--compile", "off", "--head", "none", "--temp", "0")


def chat(*arguments: str) -> int:
    return run(["chat", *arguments, *FLAGS])


def test_one_question(tiny: Path, capfd: pytest.CaptureFixture[str], as_json: Callable[..., dict[str, Any]]) -> None:
    assert chat(str(tiny), "-p", "Hi", "-n", "12") == 0
    said = capfd.readouterr()
    told = as_json("chat", str(tiny), "-p", "Hi", "-n", "12", *FLAGS)
    assert said.out == told["text"] + "\n"
    assert told["finish_reason"] == "length" and len(told["token_ids"]) == 12
    assert told["timings"]["prompt_tokens"] == len(told["prompt_token_ids"]) and "plan" in told
    assert "cut off at 12 tokens" in said.err and "/set" not in said.err


def test_piped_input_is_the_question(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, as_json: Callable[..., dict[str, Any]]
) -> None:
    asked = as_json("chat", "-m", str(tiny), "-p", "Hi", "-n", "3", "-s", "S", *FLAGS)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hi\n")))
    piped = as_json("chat", str(tiny), "-n", "3", "-s", "S", *FLAGS)
    assert piped["prompt_token_ids"] == asked["prompt_token_ids"]


def test_piped_input_that_is_no_text(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff"), errors="surrogateescape"))
    assert chat(str(tiny)) == 2
    assert capfd.readouterr().err == "error: standard input is not UTF-8 at byte 1 (convert it)\n"
    assert chat(str(tiny), "-p", "a\udcff") == 1
    assert "not valid Unicode" in capfd.readouterr().err


def test_the_environment_and_files(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: Callable[..., dict[str, Any]]
) -> None:
    (tmp_path / "system").write_text("Be kind.\n")
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}|{{ mood }}|{{ thinking }}")
    monkeypatch.setenv("DSV3RT_CHAT_MAX_TOKENS", "2")
    told = as_json(
        "chat", str(tiny), "-p", "Hi", "--system-file", str(tmp_path / "system"), "--reasoning", "off",
        "--chat-template-file", str(tmp_path / "t.jinja"), "--chat-template-kwargs", '{"mood": "!"}', *FLAGS,
    )  # fmt: skip
    assert len(told["token_ids"]) == 2
    assert len(told["prompt_token_ids"]) == len("Be kind.|!|False")


WRONG: list[tuple[list[str], int, str]] = [
    (["-p", ""], 2, "question is empty"),
    (["-p", "x", "--temp", "-1"], 2, "temperature"),
    (["-p", "x", "--chat-template-kwargs", "[1]"], 2, "no JSON object"),
    (["-p", "x", "--chat-template", "nope"], 1, "no template named"),
    (["-p", "x", "--chat-template", "{{ 1 / 0 }}"], 1, "division by zero"),
    (["-p", "x", "--chat-template", "{{ x", "--chat-template-file", "y"], 2, "exclude each other"),
    (["-p", "x", "--chat-template-file", "/nope"], 1, "cannot read"),
    (["-p", "x", "--system", "a", "--system-file", "b"], 2, "exclude each other"),
    (["-p", "x", "--system-file", "/nope"], 2, "cannot read"),
    (["-p", "x", "--draft-tokens", "some"], 2, "--draft-tokens"),
    (["-p", "x", "-m", "/other"], 2, "two checkpoints"),
    (["-p", "word " * 60], 1, "context"),
]


@pytest.mark.parametrize("arguments, code, words", WRONG, ids=lambda value: str(value)[:30])
def test_mistakes_cost_one_line(
    arguments: list[str], code: int, words: str, tiny: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["chat", str(tiny), "--compile", "off", "--head", "none", *arguments]) == code
    said = capfd.readouterr()
    assert said.out == "" and words in said.err
    assert len(said.err.strip().splitlines()) == 1, said.err


def test_no_tokenizer_and_no_template(
    tiny: Path, tiny_bare: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert chat(str(tiny_bare), "-p", "x") == 1
    assert "chat template" in capfd.readouterr().err.splitlines()[-1]
    assert chat(str(tiny_bare), "-p", "x", "--chat-template", "{{ messages }}") == 1
    assert "no tokenizer" in capfd.readouterr().err.splitlines()[-1]


class Session:
    """`dsv3rt chat` on a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        code = "import sys; from dsv3rt.cli.main import run; sys.exit(run(sys.argv[1:]))"
        environment = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "COLUMNS": "120", "LINES": "40"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "chat", *arguments, *FLAGS],
            stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def wait_for(self, pattern: str, seconds: float = 120) -> str:
        """Everything up to a match of `pattern`, which is then taken out of what was seen."""
        until = time.monotonic() + seconds
        while (found := re.search(pattern, self.seen)) is None:
            assert time.monotonic() < until, f"waited for {pattern!r}, saw {self.seen!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.master, 65536).decode("utf-8", "replace")
                except OSError:
                    raise AssertionError(f"it ended, having said {self.seen!r}") from None
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def leave(self, text: str) -> int:
        self.type(text)
        try:
            while os.read(self.master, 65536):
                pass
        except OSError:
            pass
        return self.process.wait(120)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)


def test_in_a_terminal(tiny: Path, tmp_path: Path) -> None:
    session = Session(str(tiny), "-n", "5")
    try:
        session.wait_for(">>>")
        session.type("Hello\r")
        session.wait_for("first after")
        session.wait_for(">>>")
        session.type("/show\r")
        session.wait_for("context  +128 tokens")
        session.wait_for(">>>")
        session.type(f"/save {tmp_path / 'talk.json'}\r")
        session.wait_for("saved 2 messages")
        session.wait_for(">>>")
        assert session.leave("\x04") == 0
    finally:
        session.close()
    assert json.loads((tmp_path / "talk.json").read_text())["messages"][0]["content"] == "Hello"


def test_ctrl_c_while_asking_once(tiny: Path) -> None:
    """The answer ends, the program says so with its exit code."""
    slow = tiny.parent / "slow.py"
    slow.write_text(
        "import time\nfrom dsv3rt import hookimpl\n\n@hookimpl\ndef model_assembled(model, plan):\n"
        "    model.register_forward_pre_hook(lambda *given: time.sleep(0.1))\n"
    )
    session = Session(str(tiny), "-p", "Hi", "--plugin", str(slow))
    try:
        session.wait_for(r"[^\n]\r?\n?|.")
        time.sleep(1.0)
        os.kill(session.process.pid, signal.SIGINT)
        assert session.leave("") == 130
    finally:
        session.close()


PLUGIN = '''
from dsv3rt import hookimpl
from dsv3rt.chat.tokenizers import build_fast


class Shouting:
    """A chat format written in Python, as V3.2's is."""

    reasoning_tags = None

    def render(self, messages, *, add_generation_prompt=True, tools=None, **kwargs):
        return "".join(message["content"].upper() for message in messages) + kwargs.get("end", "?")


@hookimpl
def register_tokenizer(register):
    register("counted", lambda folder: build_fast(folder.parent / "made"))


@hookimpl
def register_chat_format(register):
    register("shouting", lambda folder: Shouting() if (folder / "config.json").exists() else None)
'''


def test_a_tokenizer_and_a_chat_format_from_a_plugin(
    tiny: Path, tmp_path: Path, as_json: Callable[..., dict[str, Any]]
) -> None:
    (tmp_path / "made").symlink_to(tiny)
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).symlink_to(tiny / name)
    (tmp_path / "plugin.py").write_text(PLUGIN)
    flags = ("-n", "2", "--plugin", str(tmp_path / "plugin.py"), "--chat-template-kwargs", '{"end": "!"}', *FLAGS)
    told = as_json("chat", str(bare), "-p", "hi", "-s", "be kind. ", *flags)
    plain = as_json("generate", str(tiny), "-p", "BE KIND. HI!", "-n", "2", *FLAGS)
    assert told["prompt_token_ids"] == plain["prompt_token_ids"]
    assert told["token_ids"] == plain["token_ids"]

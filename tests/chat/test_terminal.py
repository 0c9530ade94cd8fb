"""The terminal chat, driven without a terminal and without a model."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from dsv3rt.chat.conversation import Conversation
from dsv3rt.chat.keyboard import is_complete, keyboard, unquote
from dsv3rt.chat.report import footer
from dsv3rt.chat.settings import ChatSettings
from dsv3rt.chat.terminal import COMMANDS, Terminal
from dsv3rt.errors import ContextError, UsageError
from dsv3rt.generate.sampling import SamplingParams


class FakeStream:
    """Chunks of (reasoning, text); `interrupt_at` presses Ctrl-C before that chunk."""

    def __init__(self, chunks: list[tuple[str, str]], finish: str, interrupt_at: int | None, presses: int) -> None:
        self._chunks = chunks
        self._finish = finish
        self._interrupt_at = interrupt_at
        self._presses = presses
        self.shown: list[tuple[str, str]] = []
        self.closed = False

    def __iter__(self) -> Iterator[Any]:
        for index, (reasoning, text) in enumerate(self._chunks):
            if self.closed:
                return
            if index == self._interrupt_at:
                for _ in range(self._presses):
                    os.kill(os.getpid(), signal.SIGINT)
            if text == "BREAK":
                raise RuntimeError("a compiler was killed\nby Ctrl-C")
            self.shown.append((reasoning, text))
            yield SimpleNamespace(reasoning=reasoning, text=text, token_ids=(1,))

    def close(self) -> None:
        self.closed = True
        self._finish = "interrupted"

    @property
    def generation(self) -> Any:
        tokens = list(range(len(self.shown)))
        return SimpleNamespace(
            text="".join(text for _, text in self.shown),
            reasoning="".join(thought for thought, _ in self.shown),
            finish_reason=self._finish,
            token_ids=tokens,
            prompt_token_ids=[0] * 5,
            timings=SimpleNamespace(
                load_s=1.0, compile_s=2.0, ttft_s=0.25, prompt_tokens=5, prompt_tps=20.0,
                gen_tokens=len(tokens), gen_tps=10.0, peak_rss_bytes=2_500_000_000,
            ),
            speculation=SimpleNamespace(drafted=4, accepted=3, acceptance=0.75, per_position=[0.75], speedup=1.5),
        )  # fmt: skip


@dataclass
class FakeRuntime:
    """Answers with what it was told to, and remembers what it was asked."""

    answers: list[Any] = field(default_factory=list)
    finish: str = "stop"
    interrupt_at: int | None = None
    presses: int = 1
    asked: list[list[dict[str, Any]]] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, stream: bool, template_kwargs: Mapping[str, Any], **options: Any
    ) -> FakeStream:
        assert stream
        self.asked.append([dict(message) for message in messages])
        self.options.append({**options, "template_kwargs": dict(template_kwargs)})
        answer = self.answers.pop(0) if self.answers else "ok"
        if isinstance(answer, Exception):
            raise answer
        chunks = [("", answer)] if isinstance(answer, str) else answer
        return FakeStream(chunks, self.finish, self.interrupt_at, self.presses)


class Keys:
    """Input line after input line; None is Ctrl-C. Remembers what the line was filled with."""

    def __init__(self, *lines: str | None) -> None:
        self.lines = list(lines)
        self.drafts: list[str] = []

    def __call__(self, draft: str) -> str:
        self.drafts.append(draft)
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if line is None:
            raise KeyboardInterrupt
        return line


def make(runtime: FakeRuntime, *, tty: bool = False, **options: Any) -> tuple[Terminal, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    settings = options.pop("settings", None) or ChatSettings()
    terminal = Terminal(
        runtime,
        settings,
        model="m",
        context=100,
        check_sampling=lambda given: SamplingParams().override(
            **{name: value for name, value in given.items() if name not in ("max_tokens", "stop", "draft_tokens")}
        ),
        out=Console(file=out, force_terminal=tty, color_system="standard" if tty else None, width=80),
        err=Console(file=err, width=200),
        **options,
    )
    return terminal, out, err


def test_a_conversation() -> None:
    runtime = FakeRuntime(["Hello", "4"])
    terminal, out, err = make(runtime, system="Be brief.")
    terminal.run(Keys("Hi", "2+2?"))
    assert out.getvalue() == "Hello\n4\n"
    assert [message["role"] for message in runtime.asked[1]] == ["system", "user", "assistant", "user"]
    assert runtime.asked[1][2]["content"] == "Hello"
    assert err.getvalue().splitlines()[0] == (
        "1 tokens, 10.0 tok/s · prompt 5 at 20.0 tok/s · first after 0.25 s · "
        "3 of 4 drafts accepted (75%), 1.50 x · peak 2.50 GB"
    )


@pytest.mark.parametrize("word", ["/exit", "/bye", "/quit", "exit", " /exit "])
def test_ways_to_leave(word: str) -> None:
    terminal, out, _ = make(FakeRuntime())
    keys = Keys(word, "never")
    terminal.run(keys)
    assert keys.lines == ["never"] and out.getvalue() == ""


def test_ctrl_c_at_the_prompt_does_not_leave() -> None:
    terminal, out, err = make(FakeRuntime())
    terminal.run(Keys(None, "Hi"))
    assert out.getvalue() == "ok\n" and "Ctrl-D leaves" in err.getvalue()


def test_ctrl_c_ends_the_answer_and_keeps_what_was_said() -> None:
    runtime = FakeRuntime([[("", "one "), ("", "two "), ("", "three")], "next"], interrupt_at=1)
    terminal, out, err = make(runtime)
    before = signal.getsignal(signal.SIGINT)
    terminal.run(Keys("count"))
    assert signal.getsignal(signal.SIGINT) is before
    assert out.getvalue() == "one two \n" and "stopped" in err.getvalue()
    assert terminal.conversation.messages[-1] == {"role": "assistant", "content": "one two "}


def test_a_second_ctrl_c_does_not_wait_and_loses_nothing() -> None:
    terminal, _, err = make(FakeRuntime([[("", "one"), ("", "two")]], interrupt_at=0, presses=2))
    keys = Keys("count")
    terminal.run(keys)
    assert keys.drafts == ["", "count"] and terminal.conversation.messages == []
    assert "back in the input line" in err.getvalue()


def test_a_compiler_killed_by_ctrl_c_is_no_accident() -> None:
    terminal, _, err = make(FakeRuntime([[("", "one"), ("", "BREAK")], "next"], interrupt_at=1))
    keys = Keys("count", "count")
    terminal.run(keys)
    assert keys.drafts[1] == "count" and "unexpected" not in err.getvalue() and "stopped" in err.getvalue()


def test_an_accident_does_not_end_the_conversation() -> None:
    terminal, out, err = make(FakeRuntime(["a", [("", "BREAK")], "b"]))
    keys = Keys("first", "second", "second")
    terminal.run(keys)
    assert keys.drafts[2] == "second" and out.getvalue().endswith("b\n")
    assert "error: unexpected RuntimeError: a compiler was killed (DSV3RT_DEBUG=1 shows all)\n" in err.getvalue()


def test_beyond_the_context_loses_nothing() -> None:
    full = ContextError("the prompt has 120 tokens, the context 100", fix="shorten")
    runtime = FakeRuntime(["a", full, full, "b"])
    terminal, out, err = make(runtime)
    keys = Keys("first", "long one", "/retry", "/drop 1", "long one")
    terminal.run(keys)
    assert keys.drafts == ["", "", "", "", "long one", ""]  # room for the commands, then the question again
    assert "120 tokens" in err.getvalue() and "/drop N" in err.getvalue()
    for asked in runtime.asked[1:3]:
        assert [message["content"] for message in asked] == ["first", "a", "long one"]
    assert [message["content"] for message in runtime.asked[3]] == ["long one"]
    assert "forgot 1 question\n" in out.getvalue() and out.getvalue().endswith("b\n")


@pytest.mark.parametrize("limit, words", [(1, "cut off at 1 tokens"), (None, "the context is full")])
def test_a_cut_answer_says_why(limit: int | None, words: str) -> None:
    settings = ChatSettings({} if limit is None else {"max_tokens": limit})
    terminal, _, err = make(FakeRuntime(finish="length"), settings=settings)
    terminal.obey("Hi")
    assert words in err.getvalue()


def test_thoughts_are_dimmed_or_hidden_and_kept() -> None:
    chunks = [("think", ""), ("ing", "An"), ("", "swer")]
    terminal, out, _ = make(FakeRuntime([chunks]), tty=True)
    terminal.obey("Hi")
    assert out.getvalue() == "\x1b[2mthink\x1b[0m\x1b[2ming\x1b[0m\n\nAnswer\n"
    assert terminal.conversation.messages[-1] == {
        "role": "assistant", "content": "Answer", "reasoning_content": "thinking"
    }  # fmt: skip
    terminal, out, _ = make(FakeRuntime([chunks]), settings=ChatSettings(hide_reasoning=True))
    terminal.obey("Hi")
    assert out.getvalue() == "Answer\n"


def test_what_a_model_says_cannot_move_the_cursor() -> None:
    terminal, out, _ = make(FakeRuntime(["\x1b[2Ja[bold]b[/bold]\r\tc\n"]), tty=True)
    terminal.obey("Hi")
    assert out.getvalue() == "\ufffd[2Ja[bold]b[/bold]\ufffd\tc\n\n"
    terminal, out, _ = make(FakeRuntime(["\x1b[2J\r[b]"]))
    terminal.obey("Hi")
    assert out.getvalue() == "\x1b[2J\r[b]\n"  # a file gets it as it is


def test_settings() -> None:
    runtime = FakeRuntime()
    terminal, out, err = make(runtime)
    for line in (
        "/set temp 0.2",
        "/set top-k 5",
        "/set stop \\n\\n",
        "/set reasoning on",
        "/set draft_tokens auto",
        "Hi",
    ):
        terminal.obey(line)
    assert runtime.options[0] == {
        "temperature": 0.2, "top_k": 5, "stop": ("\n\n",), "draft_tokens": "auto",
        "template_kwargs": {"thinking": True, "enable_thinking": True},
    }  # fmt: skip
    for line in ("/set temp default", "/set reasoning auto", "/set stop default", "Hi"):
        terminal.obey(line)
    assert runtime.options[1] == {"top_k": 5, "draft_tokens": "auto", "template_kwargs": {}}
    terminal.obey("/set")
    assert "top_k" in out.getvalue() and "5 " in out.getvalue()
    for line, complaint in [
        ("/set temperature -1", "out of range"),
        ("/set top_k many", "whole number"),
        ("/set temprature 1", "did you mean temperature?"),
        ("/set seed", "lacks a value"),
        ("/set timings maybe", "on or off"),
    ]:
        err.truncate(0)
        terminal.obey(line)
        assert complaint in err.getvalue() and err.getvalue().strip("\x00").count("\n") == 1
    assert terminal.settings.sampling == {"top_k": 5, "draft_tokens": "auto"}


def test_system_clear_retry_show_stats_help() -> None:
    runtime = FakeRuntime(["a", "b", "c"])
    terminal, out, _ = make(runtime, facts=[("attention", "mla")])
    terminal.obey("/system Be kind.")
    terminal.obey("Hi")
    terminal.obey("/retry")
    assert runtime.asked[1] == runtime.asked[0]
    assert [message["content"] for message in terminal.conversation.messages] == ["Hi", "b"]
    terminal.obey("/show")
    terminal.obey("/stats")
    terminal.obey("/help")
    for words in ("Be kind.", "mla", "1 questions", "answers", "6 of 100", "/retry"):
        assert words in out.getvalue()
    terminal.obey("/system -")
    terminal.obey("/clear")
    terminal.obey("Hi")
    assert runtime.asked[2] == [{"role": "user", "content": "Hi"}]


def test_unknown_commands_are_not_said_to_the_model() -> None:
    runtime = FakeRuntime()
    terminal, _, err = make(runtime)
    terminal.obey("/hlep")
    assert "did you mean /help?" in err.getvalue() and not runtime.asked
    terminal.obey("//etc is a folder")
    assert runtime.asked[0][0]["content"] == "/etc is a folder"
    terminal.obey("/retry now")
    terminal.obey("   ")
    assert len(runtime.asked) == 2


def test_several_lines() -> None:
    assert unquote('"""\na\nb\n"""') == "a\nb" and unquote('say """x"""') == 'say """x"""'
    assert not is_complete('"""') and not is_complete('"""a\nb') and is_complete('"""a\nb"""') and is_complete("a")


def test_timings_in_full() -> None:
    terminal, _, err = make(FakeRuntime(), settings=ChatSettings(timings=True))
    terminal.obey("Hi")
    for words in ("loading", "compiling", "2.00 s", "3 of 4 accepted", "1.50 x", "ended by"):
        assert words in err.getvalue()


def test_the_line_under_an_answer_is_broken_between_figures() -> None:
    answer = FakeStream([("", "ok")], "stop", None, 0).generation
    whole = footer(answer)
    assert "\n" not in whole and "3 of 4 drafts accepted (75%), 1.50 x" in whole
    lines = footer(answer, 60).split("\n")
    assert " · ".join(lines) == whole and len(lines) > 1 and max(map(len, lines)) <= 60


def test_save_and_load(tmp_path: Path) -> None:
    terminal, out, err = make(FakeRuntime([[("hm", "é\n")]]), system="S")
    terminal.obey("Hi")
    terminal.obey(f"/save {tmp_path / 'talk.json'}")
    assert "saved 2 messages" in out.getvalue()
    again, _, _ = make(FakeRuntime())
    again.obey(f"/load {tmp_path / 'talk.json'}")
    assert again.conversation == terminal.conversation
    assert list(tmp_path.iterdir()) == [tmp_path / "talk.json"]
    terminal.obey(f"/save {tmp_path / 'talk.json'}")  # a conversation may be replaced
    (tmp_path / "thesis.txt").write_text("precious")
    terminal.obey(f"/save {tmp_path / 'thesis.txt'}")
    assert "is no conversation" in err.getvalue() and (tmp_path / "thesis.txt").read_text() == "precious"
    terminal.obey("/save")
    terminal.obey("/save /nope/nope.json")
    assert "lacks a file" in err.getvalue() and "cannot write" in err.getvalue()


@pytest.mark.parametrize("content", [
    "", "{", "5", '{"messages": 5}', '[{"role": "user"}]', '[{"role": "boss", "content": "x"}]', "[5]",
    '[{"role": "user", "content": 5}]', '{"system": 5, "messages": []}', "\ufeff[]", "[" * 100_000,
])  # fmt: skip
def test_a_broken_file_changes_nothing(content: str, tmp_path: Path) -> None:
    terminal, _, err = make(FakeRuntime())
    terminal.obey("Hi")
    before = list(terminal.conversation.messages)
    (tmp_path / "talk.json").write_text(content)
    terminal.obey(f"/load {tmp_path / 'talk.json'}")
    assert terminal.conversation.messages == before
    assert err.getvalue().splitlines()[-1].startswith("error: ")


def test_a_bare_list_of_messages_can_be_loaded(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}]
    (tmp_path / "talk.json").write_text(json.dumps(talk))
    assert Conversation.load(tmp_path / "talk.json") == Conversation("S", talk[1:])
    terminal, _, _ = make(FakeRuntime())
    keys = Keys(f"/load {tmp_path / 'talk.json'}")
    terminal.run(keys)
    assert keys.drafts[-1] == "Hi" and terminal.conversation.messages == []


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "talk.json"
    Conversation(None, [{"role": "user", "content": "old"}]).save(path, "m")
    before = path.read_text()

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UsageError, match="No space left"):
        Conversation().save(path, "m")
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]


def test_the_keyboard() -> None:
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        read = keyboard(COMMANDS)
        keys.send_text("hello\r")
        assert read("") == "hello"
        keys.send_text('"""a\rb"""\r')
        assert unquote(read("")) == "a\nb"
        keys.send_text("a\x1b\rb\r")
        assert read("") == "a\nb"
        keys.send_text("\x1b[200~one\ntwo\x1b[201~\r")
        assert read("") == "one\ntwo"
        keys.send_text("!\r")
        assert read("draft") == "draft!"
        keys.send_text("\x03")
        with pytest.raises(KeyboardInterrupt):
            read("")
        keys.send_text("\x04")
        with pytest.raises(EOFError):
            read("")

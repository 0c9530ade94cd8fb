"""The conversation in a terminal: reads lines, streams answers, obeys commands.

It knows the runtime only as something with a `chat` method, and the keyboard only as a function that gives the next
input, so that all of it can be driven by a test.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from rich.console import Console

from dsv3rt.chat.conversation import Conversation
from dsv3rt.chat.keyboard import Interrupt, Read, Waiting, silent_keys, unquote
from dsv3rt.chat.report import Totals, footer, long_form, table
from dsv3rt.chat.settings import ChatSettings
from dsv3rt.chat.wrap import WordWrap
from dsv3rt.errors import ContextError, UsageError, UserError


class AnswerStream(Protocol):
    """Of `runtime.Stream`, what the terminal uses."""

    generation: Any

    def __iter__(self) -> Iterator[Any]: ...

    def close(self) -> None: ...


class Speaker(Protocol):
    """Of `runtime.Runtime`, what the terminal uses."""

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stream: bool,
        template_kwargs: Mapping[str, Any],
        **options: Any,
    ) -> Any: ...


COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "help": "this list",
        "set": "[NAME VALUE]: show or change a setting; VALUE default undoes it",
        "show": "the model, what fills its slots, the system prompt",
        "system": "[TEXT]: show or change the system prompt; - removes it",
        "clear": "forget the conversation",
        "retry": "answer the last question anew",
        "drop": "[N]: forget the oldest N questions and their answers",
        "save": "FILE: write the conversation",
        "load": "FILE: go on with a saved one",
        "stats": "figures of this session",
        "exit": "leave (so do /bye, /quit, exit, Ctrl-D)",
    }
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that move the cursor or begin an escape sequence."""
_LEAVE = ("exit", "quit", "bye")


class Terminal:
    """One conversation with one model."""

    def __init__(
        self,
        speaker: Speaker,
        settings: ChatSettings,
        *,
        model: str,
        facts: Sequence[tuple[str, str]] = (),
        context: int | None = None,
        system: str | None = None,
        check_sampling: Callable[[dict[str, Any]], object] = dict,
        interactive: bool = True,
        show_footer: bool = True,
        out: Console | None = None,
        err: Console | None = None,
    ) -> None:
        self.speaker = speaker
        self.settings = settings
        self.model = model
        self.facts = list(facts)
        self.context = context
        self.conversation = Conversation(system)
        self.totals = Totals()
        self.check_sampling = check_sampling
        self.interactive = interactive
        self.show_footer = show_footer
        self.out = out or Console(highlight=False, soft_wrap=True, markup=False)
        self.err = err or Console(highlight=False, soft_wrap=True, markup=False, stderr=True)
        self.debug = os.environ.get("DSV3RT_DEBUG", "") not in ("", "0")
        self._interrupt = Interrupt()
        self._wrap = WordWrap()
        self._draft = ""
        self._waiting_for_room = ""

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the last answer."""
        return self._interrupt.asked

    def run(self, read: Read) -> None:
        """Until the user leaves."""
        while True:
            draft, self._draft = self._draft, ""
            try:
                text = read(draft)
            except EOFError:
                return
            except KeyboardInterrupt:
                self._note("/exit or Ctrl-D leaves")
                continue
            if not self.obey(text):
                return

    def obey(self, text: str) -> bool:
        """One input: a command or something to say. False: leave."""
        text = unquote(text)
        stripped = text.strip()
        if not stripped:
            return True
        if stripped in _LEAVE or (stripped.startswith("/") and stripped[1:] in _LEAVE):
            return False
        try:
            if stripped.startswith("/") and not stripped.startswith("//"):
                name, _, rest = stripped[1:].partition(" ")
                self._command(name, rest.strip())
            else:
                self.ask(text[1:] if stripped.startswith("//") else text)
        except ContextError as error:
            self._complain(error)
            self._waiting_for_room, self._draft = self._draft, ""
            self._note("nothing is lost", "/drop N forgets the oldest questions, /clear all; then this one comes back")
        except UserError as error:
            self._complain(error)
        except Exception as error:
            if self.debug:
                raise
            reason = next(iter(str(error).splitlines()), "")[:200]
            self._complain(UserError(f"unexpected {type(error).__name__}: {reason}", fix="DSV3RT_DEBUG=1 shows all"))
        return True

    # -- speaking -----------------------------------------------------------------------------------------------------

    def ask(self, text: str) -> None:
        """Say `text`, show the answer. What cannot be answered goes back into the input line: nothing is lost."""
        self._waiting_for_room = ""
        self.conversation.say(text)
        try:
            generation = self._stream()
        except BaseException:
            self._draft = self.conversation.take_back() or ""
            raise
        if generation is None or not (generation.text or generation.reasoning):
            self._draft = self.conversation.take_back() or ""
            if generation is not None and generation.finish_reason != "interrupted":
                self._note("the model ended at once, without a word")
            return
        self.conversation.answer(generation.text, generation.reasoning)

    def _stream(self) -> Any:
        """Show an answer as it comes; what was generated, or None if Ctrl-C left nothing."""
        options = dict(self.settings.sampling)
        variables = self.settings.variables()
        thinking = False
        generation = None
        with self._interrupt.watch(), silent_keys(), Waiting(self.err, "reading") as waiting:
            try:
                stream: AnswerStream = self.speaker.chat(
                    self.conversation.all_messages(), stream=True, template_kwargs=variables, **options
                )
                for chunk in stream:
                    if chunk.text or (chunk.reasoning and not self.settings.hide_reasoning):
                        waiting.stop()
                    elif chunk.reasoning:
                        waiting.say("thinking")
                    thinking = self._show(chunk, thinking)
                    if self._interrupt.asked:
                        stream.close()
                        break
                generation = stream.generation
            except (KeyboardInterrupt, Exception):
                # Ctrl-C reaches every process of the terminal: a compiler killed by it makes torch.compile fail.
                if not self._interrupt.asked:
                    raise
                waiting.stop()
                self._end_line()
                self._note("stopped", "the question is back in the input line")
                return None
        self._end_line()
        self._finish(generation)
        return generation

    def _show(self, chunk: Any, thinking: bool) -> bool:
        """Print a chunk, thoughts dimmed; whether a thought is on the screen without an answer yet."""
        if chunk.reasoning and not self.settings.hide_reasoning:
            self._write(chunk.reasoning, dim=True)
            thinking = True
        if chunk.text:
            if thinking:
                self._write("\n\n")
            self._write(chunk.text)
            thinking = False
        return thinking

    def _finish(self, generation: Any) -> None:
        self.totals.add(generation)
        if generation.finish_reason == "interrupted":
            self._note("stopped")
        elif generation.finish_reason == "length":
            limit = self.settings.sampling.get("max_tokens")
            if limit is not None and generation.timings.gen_tokens >= limit:
                self._note(f"cut off at {limit} tokens", "/set max_tokens N raises the limit")
            else:
                self._note("cut off: the context is full", "/drop 1 forgets the oldest question, /clear all of them")
        if self.settings.timings:
            self._note(long_form(generation))
        elif self.show_footer:
            self._note(footer(generation, self.err.width))

    # -- commands -----------------------------------------------------------------------------------------------------

    def _command(self, name: str, rest: str) -> None:
        if name not in COMMANDS:
            close = difflib.get_close_matches(name, [*COMMANDS, *_LEAVE], n=1)
            hint = f"did you mean /{close[0]}?" if close else "/help lists them"
            raise UsageError(f"there is no command /{name}", fix=f"{hint}; to say it, write //{name}")
        getattr(self, f"_do_{name}", lambda rest: None)(rest)

    def _do_help(self, rest: str) -> None:
        self._tell(table([(f"/{name}", text) for name, text in COMMANDS.items()]))
        self._tell('  """ begins and ends several lines; Alt-Enter is a new line; Ctrl-C stops an answer')

    def _do_set(self, rest: str) -> None:
        if not rest:
            self._tell(table(self.settings.rows()))
            return
        name, _, value = rest.partition(" ")
        if not value.strip():
            raise UsageError(f"/set {name} lacks a value", fix=f"/set {name} VALUE")
        self.settings.set(name, value.strip(), self.check_sampling)

    def _do_show(self, rest: str) -> None:
        said = sum(message["role"] == "user" for message in self.conversation.messages)
        rows = [("model", self.model), *self.facts, ("system prompt", self.conversation.system or "none")]
        self._tell(table([*rows, ("conversation", f"{said} questions")]))

    def _do_system(self, rest: str) -> None:
        if rest:
            self.conversation.system = None if rest == "-" else rest
        self._tell(f"  system prompt: {self.conversation.system or 'none'}")

    def _do_clear(self, rest: str) -> None:
        self.conversation.messages.clear()
        self._tell("  forgotten")
        self._bring_back()

    def _do_retry(self, rest: str) -> None:
        text = self._waiting_for_room or self.conversation.take_back()
        if text is None:
            raise UsageError("there is nothing to retry", fix="say something first")
        self.ask(text)

    def _do_drop(self, rest: str) -> None:
        if rest and not rest.isdecimal():
            raise UsageError(f"/drop {rest}: not a number", fix="/drop N")
        dropped = self.conversation.drop_oldest(int(rest or 1))
        self._tell(f"  forgot {dropped} question{'s' if dropped != 1 else ''}")
        self._bring_back()

    def _bring_back(self) -> None:
        """There is room now for the question there was none for: it goes into the input line."""
        self._draft, self._waiting_for_room = self._waiting_for_room, ""

    def _do_save(self, rest: str) -> None:
        path = self._path(rest, "save")
        self.conversation.save(path, self.model)
        self._tell(f"  saved {len(self.conversation.messages)} messages to {path}")

    def _do_load(self, rest: str) -> None:
        path = self._path(rest, "load")
        self.conversation = Conversation.load(path)
        self._tell(f"  {len(self.conversation.messages)} messages from {path}")
        last = self.conversation.messages[-1:]
        if last and last[0]["role"] == "user":
            self._draft = self.conversation.take_back() or ""

    def _do_stats(self, rest: str) -> None:
        self._tell(self.totals.describe(self.context))

    @staticmethod
    def _path(rest: str, command: str) -> Path:
        if not rest:
            raise UsageError(f"/{command} lacks a file", fix=f"/{command} FILE")
        return Path(rest).expanduser()

    # -- the screen ---------------------------------------------------------------------------------------------------

    def _write(self, text: str, *, dim: bool = False) -> None:
        """Text of the model: exact into a file, and without power over a terminal."""
        if self.out.is_terminal:
            text = _CONTROL.sub("\ufffd", text)
            if not self.out.is_dumb_terminal:
                text = self._wrap.feed(text, self.out.width)
                if dim:
                    text = f"\x1b[2m{text}\x1b[0m"
        self.out.file.write(text)
        self.out.file.flush()

    def _end_line(self) -> None:
        self._write("\n")
        self._wrap = WordWrap()

    def _tell(self, text: str) -> None:
        self.out.print(text, markup=False, highlight=False, soft_wrap=True)

    def _note(self, text: str, way_out: str = "") -> None:
        """An aside; `way_out` is for whoever can type a command."""
        if way_out and self.interactive:
            text = f"{text}; {way_out}"
        self.err.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)

    def _complain(self, error: UserError) -> None:
        self.err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)

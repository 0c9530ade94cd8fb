"""The person's side of the terminal: lines typed, Ctrl-C, and what is shown while there is nothing to read yet."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console

Read = Callable[[str], str]
"""Given the text to start from, the user's next input. Raises EOFError (Ctrl-D), KeyboardInterrupt (Ctrl-C)."""


class Interrupt:
    """Ctrl-C while an answer comes: the first asks it to end, the second does not wait."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def watch(self) -> Iterator[None]:
        self.asked = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: FrameType | None) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True

        before = signal.signal(signal.SIGINT, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


@contextmanager
def silent_keys() -> Iterator[None]:
    """What is typed while an answer comes is not echoed into it; it appears in the next input line."""
    try:
        import termios

        before = termios.tcgetattr(sys.stdin)
    except (ImportError, OSError, ValueError, termios.error):
        yield
        return
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


class Waiting:
    """A sign of life until the first word; nothing where nobody watches."""

    def __init__(self, console: Console, text: str) -> None:
        self._status: Any = console.status(text) if console.is_terminal else None

    def __enter__(self) -> Waiting:
        if self._status is not None:
            self._status.start()
        return self

    def say(self, text: str) -> None:
        if self._status is not None:
            self._status.update(text)

    def stop(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def __exit__(self, *given: object) -> None:
        self.stop()


def unquote(text: str) -> str:
    '''Several lines between """ and """, as one text.'''
    stripped = text.strip()
    if len(stripped) >= 6 and stripped.startswith('"""') and stripped.endswith('"""'):
        return stripped[3:-3].strip("\n")
    return text


def is_complete(text: str) -> bool:
    '''Whether Enter sends: not while a """ is open.'''
    stripped = text.strip()
    return not stripped.startswith('"""') or (len(stripped) >= 6 and stripped.endswith('"""'))


def keyboard(commands: Iterable[str]) -> Read:
    """Input by prompt_toolkit: history (this session's), Alt-Enter for a new line, pasted lines kept together."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_complete(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        history=InMemoryHistory(),
        key_bindings=keys,
        multiline=True,
        completer=WordCompleter([f"/{name}" for name in commands], sentence=True),
        complete_while_typing=False,
        prompt_continuation=lambda width, line, wrapped: "... ".rjust(width) if not wrapped else "",
    )
    return lambda draft: session.prompt(">>> ", default=draft)

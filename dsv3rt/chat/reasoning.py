"""Thought and answer, told apart while the text streams."""

from __future__ import annotations

from typing import NamedTuple


class Split(NamedTuple):
    """One step of a stream: first what was thought, then what is said."""

    reasoning: str = ""
    text: str = ""


class ReasoningSplitter:
    """Feeds on the text of an answer; gives thought and answer apart, without the tags and the blank lines around them.

    A thought can only come first, and only one: tags that turn up later belong to the answer. `opened` says that the
    prompt itself ended with the opening tag (many templates write it for the model). Without `tags` all is answer.
    """

    def __init__(self, tags: tuple[str, str] | None, *, opened: bool = False) -> None:
        self._open, self._close = tags or ("", "")
        self._state = "answering" if tags is None else "thinking" if opened else "waiting"
        self._held = ""
        self._silent = opened

    @property
    def thinking(self) -> bool:
        """Whether a thought has begun and not ended."""
        return self._state == "thinking"

    def push(self, text: str) -> Split:
        """What is certain now; text that may yet become a tag, or blank space that may yet be dropped, waits."""
        self._held += text
        reasoning = ""
        if self._state == "waiting":
            self._wait()
        if self._state == "thinking":
            reasoning = self._think()
        if self._state == "trimming":
            self._held = self._held.lstrip()
            if self._held:
                self._state = "answering"
        if self._state == "answering":
            said, self._held = self._held, ""
            return Split(reasoning, said)
        return Split(reasoning)

    def flush(self) -> Split:
        """What was held back when the stream ended; a thought that never ended stays a thought."""
        rest, self._held = self._held, ""
        if self._state == "thinking":
            return Split(reasoning=rest.strip() if self._silent else rest.rstrip())
        return Split(text="" if self._state == "trimming" else rest)

    def _wait(self) -> None:
        """Before the first word: does it open a thought?"""
        begun = self._held.lstrip()
        if begun.startswith(self._open):
            self._held = begun.removeprefix(self._open)
            self._state, self._silent = "thinking", True
        elif not self._open.startswith(begun):
            self._state = "answering"

    def _think(self) -> str:
        """The part of the held text that is certainly thought."""
        if self._silent:  # blank lines before the first thought
            self._held = self._held.lstrip()
            self._silent = not self._held
        thought, tag, after = self._held.partition(self._close)
        if tag:
            self._state, self._held = "trimming", after
            return thought.rstrip()
        ends = [size for size in range(len(self._close) - 1, 0, -1) if thought.endswith(self._close[:size])]
        certain = thought[: len(thought) - (ends[0] if ends else 0)].rstrip()
        self._held = thought[len(certain) :]
        return certain


def thought_is_open(prompt: str, tags: tuple[str, str] | None) -> bool:
    """Whether the prompt ends inside a thought, so that the model goes on with it."""
    return tags is not None and prompt.rstrip().endswith(tags[0])

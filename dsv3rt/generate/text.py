"""Token ids to text while it streams: whole characters only, and nothing of a stop string ever shown."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from dsv3rt.errors import UsageError
from dsv3rt.interfaces import Tokenizer


class Detokenizer:
    """Feeds on ids, gives text. All its pieces together equal `tokenizer.decode(all ids)`.

    A token may end in the middle of a character (byte-level vocabularies do so for most emoji and rare scripts): those
    bytes wait for the rest. Bytes that can never become a character come out as U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = tokenizer.special_ids if skip_special else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._drop_space = tokenizer.strips_leading_space

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that is certain once these ids have come."""
        data = b"".join(self._tokenizer.token_bytes(token) for token in token_ids if token not in self._skip)
        if data and self._drop_space:
            data = data.removeprefix(b" ")
            self._drop_space = False
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is left when no more ids come; the detokenizer then starts afresh."""
        rest = self._decoder.decode(b"", final=True)
        self._drop_space = self._tokenizer.strips_leading_space
        return rest


class StopMatcher:
    """Ends a stream of text at the first stop string, wherever the borders between its pieces fall.

    Text that could still turn out to be the beginning of a stop string is held back. Of several stop strings the one
    that is complete first counts (of those complete at the same character, the longest).
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if any(not stop for stop in stops):
            raise UsageError("a stop string is empty", fix="give at least one character")
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None
        """The stop string that ended the stream."""

    def push(self, text: str) -> str:
        """The part of the stream that may be shown now. After a match, always empty."""
        if not self._stops:
            return text
        if self.matched is not None:
            return ""
        text = self._held + text
        found = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in self._stops if stop in text]
        if found:
            _, start, self.matched = min(found)
            self._held = ""
            return text[:start]
        keep = held_back(text, self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back when the stream ended without a match."""
        rest, self._held = self._held, ""
        return rest


def held_back(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that is a proper beginning of one of `stops`."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(len(stop) > size and stop.startswith(text[-size:]) for stop in stops):
            return size
    return 0

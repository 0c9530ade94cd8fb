"""The conversations a runtime keeps: each has caches of its own, and goes on where it ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Sequence as TokenSequence
from dataclasses import dataclass

from dsv3rt.generate.sequence import Sequence
from dsv3rt.generate.speculation import Speculator


@dataclass
class Conversation:
    """The tokens and caches of one conversation, and its drafting if there is a head."""

    sequence: Sequence
    speculator: Speculator | None


class Conversations:
    """Lends a conversation to every answer: the idle one that begins as its prompt does, or else a new one."""

    def __init__(self, make: Callable[[], Conversation], keep: int = 1) -> None:
        """keep: how many are kept when idle, for prompts that go on with them."""
        self.keep = keep
        self._make = make
        self._lock = threading.Lock()
        self._idle: list[Conversation] = []
        """Least recently used first."""

    def take(self, token_ids: TokenSequence[int]) -> Conversation:
        """For one answer; `give_back` when it has ended."""
        with self._lock:
            shared = [conversation.sequence.shared(token_ids) for conversation in self._idle]
            best = max(range(len(shared)), key=lambda i: (shared[i], -i), default=None)
            if best is not None:
                # one that would lose more than it gives is left to whoever comes back to it, while there is room
                lost = len(self._idle[best].sequence.token_ids) - shared[best]
                if lost <= shared[best] or len(self._idle) >= self.keep:
                    return self._idle.pop(best)
        return self._make()

    @property
    def newest(self) -> Conversation | None:
        """The one whose answer ended last, while it is idle."""
        return self._idle[-1] if self._idle else None

    def give_back(self, conversation: Conversation) -> None:
        with self._lock:
            self._idle.append(conversation)
            del self._idle[: len(self._idle) - self.keep]

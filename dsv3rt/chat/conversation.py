"""A conversation as the terminal keeps it: messages in the order they were said, saved and loaded whole."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsv3rt.errors import UsageError

Message = dict[str, Any]
_ROLES = ("system", "user", "assistant", "tool")
_FORMAT = "dsv3rt.conversation"


@dataclass
class Conversation:
    """What was said. `messages` holds no system prompt: that is `system`."""

    system: str | None = None
    messages: list[Message] = field(default_factory=list)

    def all_messages(self) -> list[Message]:
        """What the chat format gets."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, *self.messages]

    def say(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})

    def answer(self, text: str, reasoning: str = "") -> None:
        message: Message = {"role": "assistant", "content": text}
        if reasoning:
            message["reasoning_content"] = reasoning
        self.messages.append(message)

    def take_back(self) -> str | None:
        """Remove the last thing the user said and all that followed; returns it."""
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index]["role"] == "user":
                text = str(self.messages[index]["content"])
                del self.messages[index:]
                return text
        return None

    def drop_oldest(self, turns: int) -> int:
        """Forget the oldest `turns` questions with their answers; returns how many there were."""
        starts = [index for index, message in enumerate(self.messages) if message["role"] == "user"]
        dropped = min(turns, len(starts))
        end = starts[dropped] if dropped < len(starts) else len(self.messages)
        del self.messages[:end]
        return dropped

    def save(self, path: Path, model: str) -> None:
        """Write to `path`, whole or not at all. Raises UsageError; never replaces what is no conversation."""
        if path.exists():
            try:
                self.load(path)
            except UsageError:
                raise UsageError(f"{path} exists and is no conversation", fix="choose another name") from None
        content = {"format": _FORMAT, "model": model, "system": self.system, "messages": self.messages}
        try:
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    json.dump(content, file, ensure_ascii=False, indent=1)
                    file.write("\n")
                os.replace(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}", fix="choose another place") from None

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Read what `save` wrote, or a bare list of messages. Raises UsageError."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no JSON"
            raise UsageError(f"cannot read {path}: {reason}", fix="give a file that /save wrote") from None
        system = None
        messages = raw
        if isinstance(raw, Mapping):
            system, messages = raw.get("system"), raw.get("messages")
        if not isinstance(messages, list) or not (system is None or isinstance(system, str)):
            raise UsageError(f"{path} holds no conversation", fix="give a file that /save wrote")
        for number, message in enumerate(messages, start=1):
            _check(path, number, message)
        if messages and messages[0]["role"] == "system":
            system = system or messages[0]["content"]
            messages = messages[1:]
        return cls(system, messages)


def _check(path: Path, number: int, message: Any) -> None:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise UsageError(f"{path}: message {number} has no role", fix=f"roles are {', '.join(_ROLES)}")
    if not isinstance(message.get("content"), str):
        raise UsageError(f"{path}: message {number} has no text", fix='it needs "content"')
    thought = message.get("reasoning_content")
    if thought is not None and not isinstance(thought, str):
        raise UsageError(f"{path}: message {number} has a reasoning_content that is no text", fix="correct the file")

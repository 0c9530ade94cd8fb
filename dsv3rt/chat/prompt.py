"""A conversation to token ids, in which nobody's text can pass for a control token.

Templates write control tokens (`<｜User｜>`, `<|im_end|>`) as text, so the whole prompt is parsed for them. Where a
user, a tool or a system prompt has written one too, it is marked before rendering and encoded as the plain text it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsv3rt.chat.reasoning import thought_is_open
from dsv3rt.interfaces import ChatFormat, Tokenizer

_FOREIGN_ROLES = frozenset({"user", "tool", "system"})
_PRIVATE_USE = range(0xE000, 0xF8FF)
_BRACKETS = ("<", "[")
"""Control tokens begin so; switches that people are meant to type (GLM's /nothink) do not."""


@dataclass(frozen=True)
class Prompt:
    """What the model reads."""

    text: str
    token_ids: list[int]
    thought_open: bool
    """The template has already opened a thought: the answer goes on with it."""


def write_prompt(
    tokenizer: Tokenizer, chat_format: ChatFormat, messages: Sequence[Mapping[str, Any]], **options: Any
) -> Prompt:
    """Render and encode a conversation; `options` are those of `ChatFormat.render`. Raises TokenizerError."""
    control = {
        piece
        for message in messages
        if message.get("role") in _FOREIGN_ROLES
        for text in _texts(message.get("content"))
        for piece in control_tokens(tokenizer, text)
    }
    if not control:
        text = chat_format.render(messages, **options)
        ids = tokenizer.encode(text, add_bos=False, allow_special=True)
    else:
        left, right = _unused_characters(messages)
        pattern = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))))
        marked = [_mark(message, pattern, left, right) for message in messages]
        text = chat_format.render(marked, **options)
        ids = []
        # The template may have cut a marked text in two, so a lone mark is dropped as well.
        for index, piece in enumerate(re.split(f"{left}({pattern.pattern}){right}", text)):
            clean = piece.replace(left, "").replace(right, "")
            ids += tokenizer.encode(clean, add_bos=False, allow_special=index % 2 == 0) if clean else []
        text = text.replace(left, "").replace(right, "")
    return Prompt(text, ids, thought_is_open(text, chat_format.reasoning_tags))


def control_tokens(tokenizer: Tokenizer, text: str) -> set[str]:
    """The control tokens that somebody has written out in `text`."""
    if tokenizer.strips_leading_space or not any(bracket in text for bracket in _BRACKETS):
        return (
            set()
        )  # pieces of a sentencepiece text cannot be encoded apart; its plain encoding knows no control tokens
    parsed = tokenizer.encode(text, add_bos=False, allow_special=True)
    plain = tokenizer.encode(text, add_bos=False, allow_special=False)
    if parsed == plain:
        return set()
    names = {tokenizer.token_bytes(token).decode("utf-8", "replace") for token in set(parsed) - set(plain)}
    return {
        name
        for name in names
        if name.startswith(_BRACKETS)
        and tokenizer.encode(name, add_bos=False, allow_special=True)
        != tokenizer.encode(name, add_bos=False, allow_special=False)
    }


def _texts(content: Any) -> Iterator[str]:
    """The strings of a message's content, which may be a list of parts."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _texts(value)
    elif isinstance(content, Sequence):
        for value in content:
            yield from _texts(value)


def _mark(message: Mapping[str, Any], pattern: re.Pattern[str], left: str, right: str) -> Mapping[str, Any]:
    def mark(content: Any) -> Any:
        if isinstance(content, str):
            return pattern.sub(lambda match: f"{left}{match[0]}{right}", content)
        if isinstance(content, Mapping):
            return {key: mark(value) for key, value in content.items()}
        if isinstance(content, Sequence):
            return [mark(value) for value in content]
        return content

    if message.get("role") not in _FOREIGN_ROLES:
        return message
    return {**message, "content": mark(message.get("content"))}


def _unused_characters(messages: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Two private characters that occur nowhere in the conversation."""
    used = set(json.dumps(messages, ensure_ascii=False, default=str))
    free = (chr(code) for code in _PRIVATE_USE if chr(code) not in used)
    return next(free), next(free)

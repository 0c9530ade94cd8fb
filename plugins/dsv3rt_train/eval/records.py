"""Test items from local files in the formats they commonly have.

- Multiple choice: HellaSwag {"ctx", "endings", "label"}; ARC {"question", "choices": {"text", "label"}, "answerKey"},
  also with {"stem", "choices": [{"text", "label"}]} in "question"; MMLU {"question", "choices": [...], "answer": 0}.
- Exact match: GSM8K {"question", "answer": "... #### 42"}; plain {"question", "answer"}; conversations
  {"messages": [...]}, whose last message is the answer.
- Text: {"text"}, or a .txt file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3rt.errors import UserError
from dsv3rt_train.data.documents import parse_lines

Message = Mapping[str, str]


@dataclass(frozen=True)
class Choice:
    """A question, its possible continuations, and the right one's index."""

    context: str
    endings: list[str]
    right: int


@dataclass(frozen=True)
class Question:
    """A conversation up to the answer, and the answer."""

    messages: list[Message]
    answer: str
    number: bool
    """Only the last number of the answer counts (GSM8K, and where a number is all there is to say)."""


def read_choices(paths: Iterable[Path]) -> Iterator[Choice]:
    """Raises UserError naming file and line when an item has none of the known forms."""
    for where, record in parse_lines(paths):
        try:
            yield _choice(record)
        except (KeyError, ValueError, TypeError, IndexError):
            raise UserError(f"{where} is no multiple-choice item", fix="known: HellaSwag, ARC, MMLU") from None


def _choice(record: Mapping[str, Any]) -> Choice:
    if "endings" in record:
        return _checked(record["ctx"], [" " + text for text in record["endings"]], int(record["label"]))
    question, choices = record["question"], record.get("choices")
    if isinstance(question, Mapping):
        choices = question["choices"]
        choices = {"text": [c["text"] for c in choices], "label": [c["label"] for c in choices]}
        question = question["stem"]
    context = f"Question: {question}\nAnswer:"
    if isinstance(choices, Mapping):
        return _checked(context, [" " + text for text in choices["text"]], choices["label"].index(record["answerKey"]))
    answer = record["answer"]
    right = "ABCDEFGHIJ".index(answer) if isinstance(answer, str) and not answer.isdigit() else int(answer)
    return _checked(context, [" " + str(text) for text in choices or []], right)


def _checked(context: str, endings: list[str], right: int) -> Choice:
    if not 0 <= right < len(endings):
        raise IndexError
    return Choice(str(context), endings, right)


def read_questions(paths: Iterable[Path]) -> Iterator[Question]:
    """Raises UserError naming file and line when an item has none of the known forms."""
    for where, record in parse_lines(paths):
        messages = record.get("messages")
        if isinstance(messages, list) and len(messages) >= 2:
            yield Question(messages[:-1], str(messages[-1]["content"]), number=False)
        elif isinstance(record.get("question"), str) and "answer" in record:
            answer = str(record["answer"]).split("####")[-1].strip()
            number = "####" in str(record["answer"]) or last_number(answer) == answer.replace(",", "")
            yield Question([{"role": "user", "content": record["question"]}], answer, number)
        else:
            raise UserError(f"{where} is no question with an answer", fix="known: GSM8K, question/answer, messages")


def normalise(text: str) -> str:
    """What exact match compares: no case, no punctuation at the ends, single spaces."""
    return " ".join(text.lower().split()).strip(" .!?\"'")


def last_number(text: str) -> str | None:
    """The last number in a text, without thousands separators."""
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return found[-1].replace(",", "") if found else None

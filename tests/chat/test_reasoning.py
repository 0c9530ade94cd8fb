"""Thought and answer: the same however the stream is cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3rt.chat.reasoning import ReasoningSplitter, Split, thought_is_open

TAGS = ("<think>", "</think>")


def split(pieces: list[str], *, tags: tuple[str, str] | None = TAGS, opened: bool = False) -> tuple[str, str]:
    splitter = ReasoningSplitter(tags, opened=opened)
    parts = [*map(splitter.push, pieces), splitter.flush()]
    return "".join(part.reasoning for part in parts), "".join(part.text for part in parts)


@pytest.mark.parametrize("text, opened, expected", [
    ("<think>\nhmm\n</think>\n\nYes.", False, ("hmm", "Yes.")),
    ("\n<think>a\n\nb</think>c", False, ("a\n\nb", "c")),
    ("hmm</think>Yes", True, ("hmm", "Yes")),
    ("\n\nhmm \n</think>\n\n Yes \n", True, ("hmm", "Yes \n")),
    ("</think>Yes", True, ("", "Yes")),
    ("<think></think>", False, ("", "")),
    ("<think>\n\n</think>\n\n", False, ("", "")),
    ("never ends", True, ("never ends", "")),
    ("<think>never </thin", False, ("never </thin", "")),
    ("Yes <think>no</think>", False, ("", "Yes <think>no</think>")),
    ("<think>a</think>b<think>c</think>", False, ("a", "b<think>c</think>")),
    ("  plain", False, ("", "  plain")),
    ("<thin", False, ("", "<thin")),
    (" \n", False, ("", " \n")),
    ("", False, ("", "")),
    ("", True, ("", "")),
])  # fmt: skip
def test_by_hand(text: str, opened: bool, expected: tuple[str, str]) -> None:
    assert split([text], opened=opened) == expected
    assert split(list(text), opened=opened) == expected


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<", "</", "think>", " ", "\n", "a", "b c"]), max_size=12),
    st.lists(st.integers(0, 40), max_size=10),
    st.booleans(),
)
def test_any_cutting_is_the_same(parts: list[str], borders: list[int], opened: bool) -> None:
    text = "".join(parts)
    places = [0, *sorted(min(border, len(text)) for border in borders), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(places)]
    assert split(pieces, opened=opened) == split([text], opened=opened)


@given(st.text(), st.booleans())
def test_without_tags_all_is_answer(text: str, opened: bool) -> None:
    assert split([text], tags=None) == ("", text)


def test_thoughts_stream_as_they_come() -> None:
    splitter = ReasoningSplitter(TAGS, opened=True)
    assert splitter.push("First, ") == Split("First,")
    assert splitter.push("look </th") == Split(" look")
    assert splitter.thinking
    assert splitter.push("ink> Done") == Split("", "Done")
    assert not splitter.thinking


def test_whether_the_prompt_opened_a_thought() -> None:
    assert thought_is_open("<｜Assistant｜><think>\n", TAGS)
    assert not thought_is_open("<｜Assistant｜></think>", TAGS)
    assert not thought_is_open("<think>", None)

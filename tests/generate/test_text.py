"""Streaming text: any way of cutting the stream gives what the whole gives."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3rt.errors import UsageError
from dsv3rt.generate.text import Detokenizer, StopMatcher


class BytesTokenizer:
    """Ids 0-255 are bytes, 256 is a control token, 257 is a space and a letter; all else is unknown."""

    vocab_size = 258
    bos_id = None
    eos_ids = frozenset({256})
    special_ids = frozenset({256})
    add_bos = False

    def __init__(self, strips_leading_space: bool = False) -> None:
        self.strips_leading_space = strips_leading_space

    def encode(self, text: str, *, add_bos: bool, allow_special: bool) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token_id: int) -> bytes:
        if token_id < 256:
            return bytes([token_id])
        return {256: b"<end>", 257: b" x"}.get(token_id, b"")

    def decode(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        kept = (token for token in token_ids if not (skip_special and token == 256))
        data = b"".join(self.token_bytes(token) for token in kept)
        return (data.removeprefix(b" ") if self.strips_leading_space else data).decode("utf-8", "replace")


def cut(items: list[int] | str, borders: list[int]) -> list[list[int] | str]:
    places = [0, *sorted(min(border, len(items)) for border in borders), len(items)]
    return [items[start:end] for start, end in itertools.pairwise(places)]


def flat(lists: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(lists))


TEXT_IDS = st.text().map(lambda text: list(text.encode()))
IDS = st.lists(st.one_of(TEXT_IDS, st.lists(st.integers(0, 300), max_size=5)), max_size=6).map(flat)


@settings(max_examples=300, deadline=None)
@given(IDS, st.lists(st.integers(0, 60), max_size=8), st.booleans(), st.booleans())
def test_pieces_together_are_the_whole(ids: list[int], borders: list[int], strip: bool, skip: bool) -> None:
    tokenizer = BytesTokenizer(strip)
    stream = Detokenizer(tokenizer, skip_special=skip)
    pieces = [stream.push(chunk) for chunk in cut(ids, borders)]  # type: ignore[arg-type]
    assert "".join([*pieces, stream.flush()]) == tokenizer.decode(ids, skip_special=skip)


def test_a_character_comes_whole_or_not_at_all() -> None:
    stream = Detokenizer(BytesTokenizer())
    assert [stream.push([byte]) for byte in "é🎉!".encode()] == ["", "é", "", "", "", "🎉", "!"]


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    stream = Detokenizer(BytesTokenizer())
    assert stream.push([0xFF, 0x41]) == "\ufffdA"
    assert stream.push([0xE2, 0x82]) == ""
    assert stream.flush() == "\ufffd"
    assert stream.push([0x42]) == "B"


def first_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The slow definition: read character by character until some stop string is complete; the longest of those."""
    for end in range(len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            longest = max(done, key=len)
            return text[: end - len(longest)], longest
    return text, None


ALPHABET = st.text(alphabet="abc\n", max_size=30)
STOPS = st.lists(st.text(alphabet="abc\n", min_size=1, max_size=6), max_size=3)


@settings(max_examples=600, deadline=None)
@given(ALPHABET, STOPS, st.lists(st.integers(0, 30), max_size=12))
def test_any_chunking_stops_where_the_whole_does(text: str, stops: list[str], borders: list[int]) -> None:
    matcher = StopMatcher(stops)
    shown = ""
    expected, stop = first_stop(text, stops)
    for chunk in cut(text, borders):
        shown += matcher.push(chunk)  # type: ignore[arg-type]
        assert expected.startswith(shown)  # nothing of a stop string is ever shown
    assert shown + matcher.flush() == expected
    assert matcher.matched == stop


def test_only_what_may_be_a_stop_string_is_held_back() -> None:
    matcher = StopMatcher(["\nUser:"])
    assert matcher.push("Hello\n") == "Hello"
    assert matcher.push("Us") == ""
    assert matcher.push("ually") == "\nUsually"
    assert matcher.push(" done\nUser: no") == " done"
    assert matcher.matched == "\nUser:"
    assert matcher.push("more") == "" and matcher.flush() == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        StopMatcher(["x", ""])

"""Prompt lookup."""

from __future__ import annotations

import torch
from dsv3rt_ngram.head import NgramSession
from hypothesis import given
from hypothesis import strategies as st

from dsv3rt.interfaces import DraftRule

NOTHING = torch.empty(64, 0)


def session(ids: list[int], shortest: int = 2, longest: int = 3) -> NgramSession:
    made = NgramSession(shortest, longest)
    made.observe(ids, NOTHING, 0)
    return made


def test_it_goes_on_as_the_latest_earlier_occurrence_did() -> None:
    assert session([1, 2, 3, 4, 9, 1, 2, 3, 5, 6, 7, 1, 2, 3]).draft(3, DraftRule()).token_ids == [5, 6, 7]


def test_a_longer_match_wins_over_a_later_one() -> None:
    assert session([8, 1, 2, 5, 0, 7, 1, 2, 6, 0, 8, 1, 2]).draft(1, DraftRule()).token_ids == [5]


def test_what_was_never_said_has_no_draft() -> None:
    assert session([1, 2, 3, 4, 5]).draft(4, DraftRule()).token_ids == []


def test_a_loop_is_drafted_on_and_on() -> None:
    assert session([1, 2, 3, 1, 2, 3, 1, 2]).draft(7, DraftRule()).token_ids == [3, 1, 2, 3, 1, 2, 3]
    assert session([4, 4, 4, 4]).draft(5, DraftRule()).token_ids == [4] * 5


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=30),
    st.integers(0, 29),
    st.lists(st.integers(0, 2), min_size=1, max_size=10),
)
def test_a_rewind_leaves_no_trace(ids: list[int], length: int, rest: list[int]) -> None:
    length = min(length, len(ids))
    rewound = session(ids)
    rewound.observe(rest, NOTHING, length)
    fresh = session([*ids[:length], *rest])
    assert rewound._ids == fresh._ids and rewound._after == fresh._after
    assert rewound.observed == length + len(rest)

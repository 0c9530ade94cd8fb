"""Prompt-lookup drafting: what followed the last time the text read like this (the idea: A. Saxena, 2023).

It pays where an answer repeats its prompt: summaries, edits of code, tables.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dsv3rt.errors import UsageError
from dsv3rt.interfaces import Compile, DraftRule, Drafts, HeadSite

LIMITS = {"longest": (4, 16), "shortest": (2, 16), "max_drafts": (8, 15)}
"""Option -> (default, highest value)."""


class NgramHead(nn.Module):
    """Options: longest and shortest, the lengths in tokens of what is looked up; max_drafts."""

    def __init__(self, site: HeadSite) -> None:
        super().__init__()
        values = {name: _number(name, site.site.options.get(name)) for name in LIMITS}
        self.longest, self.shortest, self.max_drafts = values["longest"], values["shortest"], values["max_drafts"]
        if self.shortest > self.longest:
            raise UsageError("--head ngram: shortest is above longest", fix="give shortest <= longest")

    def start(self, capacity: int, device: torch.device, compile: Compile) -> NgramSession:
        return NgramSession(self.shortest, self.longest)


def _number(name: str, text: str | None) -> int:
    default, highest = LIMITS[name]
    if text is None:
        return default
    if not text.isdigit() or not 1 <= int(text) <= highest:
        raise UsageError(f"--head ngram:{name}={text} is out of range", fix=f"give a number from 1 to {highest}")
    return int(text)


class NgramSession:
    """The text, and for every n-gram in it where the token after its latest occurrence stands."""

    lookback = 1

    def __init__(self, shortest: int, longest: int) -> None:
        self.sizes = range(longest, shortest - 1, -1)
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], list[int]] = {}
        """n-gram -> positions after its occurrences, in order."""

    @property
    def observed(self) -> int:
        return len(self._ids)

    def observe(self, token_ids: Sequence[int], hidden_TD: Tensor, position: int) -> None:
        self._rewind(position)
        for token in token_ids:
            self._ids.append(token)
            end = len(self._ids)
            for size in self.sizes:
                if size <= end:
                    self._after.setdefault(tuple(self._ids[end - size :]), []).append(end)

    def _rewind(self, length: int) -> None:
        """Take back the n-grams that end past `length`."""
        while len(self._ids) > length:
            end = len(self._ids)
            for size in self.sizes:
                if size <= end:
                    gram = tuple(self._ids[end - size :])
                    self._after[gram].pop()
                    if not self._after[gram]:
                        del self._after[gram]
            self._ids.pop()

    def draft(self, count: int, rule: DraftRule) -> Drafts:
        """What followed the latest earlier occurrence of the longest n-gram that has one."""
        end = len(self._ids)
        for size in self.sizes:
            places = self._after.get(tuple(self._ids[end - size :]), []) if size <= end else []
            if len(places) > 1:  # the last place is the end of the text itself
                start = places[-2]
                found = self._ids[start : start + count]
                # an occurrence that overlaps the end goes on with what it has just said
                while found and len(found) < count and start + len(found) >= end:
                    found.append(found[start + len(found) - end])
                return Drafts(found)
        return Drafts([])

"""An MTP head's state for one conversation: its caches, and which rows they hold.

Legend: T rows, D hidden.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dsv3rt.interfaces import Accepted, Cache, Compile, Compiled, DraftRule, Drafts
from dsv3rt.model.cache import reads_only_used, window
from dsv3rt.model.ids import ints
from dsv3rt_mtp.graphs import CANDIDATES, GreedyAccept, GreedyDraft, SampledAccept, SampledDraft

if TYPE_CHECKING:
    from dsv3rt_mtp.head import MTPHead

CATCH_UP = 512
"""Rows waiting at most; more are passed through the modules in batches of this size."""
MOST_ROWS = 16
"""Rows that a graph takes (see `interfaces.Compile`)."""
COMPILE_AFTER = 8
"""Steps of so many drafts after which a graph of their own is asked for."""
MOST_APART = 32
"""Steps not to be fused, at most, after one whose shortlists were too short. There is one after the first such, and
twice as many after each that follows: where one distribution is flat, others will be."""


class MTPSession:
    """Rows wait, with the token after each, until a draft is wanted, and are then passed through the modules at once.

    Module d at a row needs the token 1+d further on, so with M modules the last M-1 rows had to do with drafts: they
    are passed again, with what settled instead.
    """

    def __init__(self, head: MTPHead, capacity: int, device: torch.device, compile: Compile) -> None:
        self.head = head
        self.device = device
        self.lookback = head.depth
        self._compile = compile
        self._caches = head.make_caches(capacity, device)
        self._whole = reads_only_used([head.module(depth) for depth in range(head.depth)])
        self._next_ids: list[int] = []
        """The token after each row."""
        self._final = 0
        """Rows that are in the caches of all modules, for good."""
        self._waiting: list[Tensor] = []
        """Hidden states [.., D] of the rows from `_final` on."""
        self._accepts: dict[tuple[type[nn.Module], int], Compiled] = {}
        """By how many drafts they make."""
        self._fused: set[tuple[type[nn.Module], int]] = set()
        """Those of several drafts that are there."""
        self._drafts: dict[tuple[type[nn.Module], int], Compiled] = {}
        """By module."""
        self._uses: dict[tuple[type[nn.Module], int], int] = {}
        """Steps of several drafts, as long as they are not fused."""
        self._rule: tuple[DraftRule, Tensor] | None = None
        self._apart = self._apart_next = 0
        """Steps still not to be fused, and as many there were the last time."""
        self._zero_1 = torch.zeros(1, dtype=torch.int64, device=device)

    @property
    def observed(self) -> int:
        return len(self._next_ids)

    def observe(self, token_ids: Sequence[int], hidden_TD: Tensor, position: int) -> None:
        if position < len(self._next_ids):
            self._rewind(position)
        assert position == len(self._next_ids), f"rows {len(self._next_ids)}..{position - 1} were not observed"
        self._next_ids.extend(token_ids)
        self._waiting.append(hidden_TD if len(hidden_TD) == len(token_ids) else hidden_TD[: len(token_ids)])
        if len(self._next_ids) - self._final > CATCH_UP + self.lookback:
            self._catch_up(self.lookback)

    def _rewind(self, position: int) -> None:
        keep = max(0, position - self._final)
        self._waiting = [self._rows()[:keep]] if keep else []
        self._final = min(self._final, position)
        del self._next_ids[position:]

    def _rows(self) -> Tensor:
        return self._waiting[0] if len(self._waiting) == 1 else torch.cat(self._waiting)

    def _window(self, used: int) -> Sequence[Cache]:
        return self._caches if self._whole else window(self._caches, used)

    @torch.inference_mode()
    def _catch_up(self, leave: int) -> None:
        """Pass waiting rows, but the last `leave`, through all modules."""
        rows_TD = self._rows()
        start, stop = self._final, len(self._next_ids) - leave
        for at in range(start, stop, CATCH_UP):
            end = min(at + CATCH_UP, stop)
            positions_BT = torch.arange(at, end, device=self.device)[None]
            normed_BTD = self.head.norm(rows_TD[None, at - start : end - start])
            for depth, cache in enumerate(self._window(end)):
                ids_BT = ints(self._next_ids[at + depth : end + depth], self.device)[None]
                if depth == self.head.depth - 1:
                    self.head.catch_up(depth, ids_BT, normed_BTD, positions_BT, cache)
                else:
                    normed_BTD = self.head.advance(depth, ids_BT, normed_BTD, positions_BT, cache)
        self._final = stop
        self._waiting = [rows_TD[stop - start :]] if leave else []

    @torch.inference_mode()
    def draft(self, count: int, rule: DraftRule) -> Drafts:
        depth, known = self.head.depth, len(self._next_ids)
        count = min(count, self.head.max_drafts)
        if count == 0 or known == 0:
            return Drafts([])
        if known - self._final > MOST_ROWS:
            self._catch_up(depth)
        rows_TD, rows = self._rows(), known - self._final
        caches = self._window(known + max(count, depth))
        ids = self._next_ids[self._final :]
        positions_BT = torch.arange(self._final, known, device=self.device)[None]
        newest_1 = ints([rows - 1], self.device)
        normed_BTD = self.head.norm(rows_TD[None])
        chain = _Chain()
        for d in range(depth):  # module d sees, at every row, the token d further on
            if d:
                ids = [*ids[1:], int(chain.tokens[-1])]
            ids_BT = ints(ids, self.device)[None]
            state = ids_BT, normed_BTD, positions_BT, newest_1
            normed_BTD = chain.add(self._graph(d, rule)(*state, caches[d], *self._chance(rule)))
        self._draft_on(chain, count, caches[-1], rule)
        again = min(depth - 1, known)
        self._final, self._waiting = known - again, [rows_TD[rows - again : rows]] if again else []
        return chain.drafts(count)

    def _draft_on(
        self, chain: _Chain, count: int, cache: Cache, rule: DraftRule, chance_k: Tensor | None = None
    ) -> None:
        """The last module again, on its own hidden states, until there are `count` drafts. chance_k: numbers drawn for
        them already, float64 [count]."""
        while (made := len(chain.tokens)) < count:
            state = chain.tokens[-1][None], chain.row_B1D, chain.next_B1, self._zero_1
            chance = self._chance(rule, None if chance_k is None else chance_k[made : made + 1])
            chain.add(self._graph(self.head.depth - 1, rule)(*state, cache, *chance))

    def _graph(self, depth: int, rule: DraftRule) -> Compiled:
        key = (SampledDraft if rule.temperature else GreedyDraft), depth
        if key not in self._drafts:
            self._drafts[key] = self._compile(key[0](self.head, depth), {0: 1, 1: 1, 2: 1})
        return self._drafts[key]

    def _chance(self, rule: DraftRule, uniform_1: Tensor | None = None) -> tuple[Tensor, ...]:
        """What drawing one draft needs."""
        if not rule.temperature:
            return ()
        return self._numbers(rule), rule.uniforms(1).to(self.device) if uniform_1 is None else uniform_1

    def _numbers(self, rule: DraftRule) -> Tensor:
        """The rule as graphs take it; made once an answer."""
        if self._rule is None or self._rule[0] is not rule:
            numbers = [rule.temperature, float(rule.top_k), rule.top_p, rule.min_p]
            self._rule = rule, torch.tensor(numbers, device=self.device)
            self._apart = self._apart_next = 0  # a seed means a text, whatever was drawn before
        return self._rule[1]

    @torch.inference_mode()
    def accept(
        self, drafts: Drafts, logits_TV: Tensor, hidden_TD: Tensor, position: int, count: int, rule: DraftRule
    ) -> Accepted | None:
        rows = len(drafts.token_ids) + 1
        if self.head.depth > 1 or position != len(self._next_ids):
            return None
        if self._final < position:
            self._catch_up(0)
        caches = self._window(position + rows + count)
        args: list[Any] = [
            ints([*drafts.token_ids, -1], self.device),
            logits_TV,
            hidden_TD[None],
            ints([position], self.device),
            caches[0],
        ]
        if rule.temperature:
            if (drafts.token_ids and drafts.candidates is None) or not self._worth_fusing(rule):
                return None
            ids_1C, probs_1C = self._no_candidates
            ids_kC, probs_kC = drafts.candidates or (ids_1C[:0], probs_1C[:0])
            args += [
                torch.cat([ids_kC, ids_1C]),
                torch.cat([probs_kC, probs_1C]),
                self._numbers(rule),
                rule.uniforms(rows).to(self.device),
            ]
        made = count if count > 1 and self._can_fuse(rule, count, args) else 1
        # all at once, so that a seed gives the same numbers whichever graph makes the drafts
        chance_k = rule.uniforms(count).to(self.device) if rule.temperature else None
        if chance_k is not None:
            args.append(chance_k[:made])
        packed, *after = self._accept_graph(rule, made)(*args)
        *settled, accepted, fine = packed.tolist()
        if not fine:
            self._apart = self._apart_next = min(max(1, 2 * self._apart_next), MOST_APART)
            return None
        self._apart_next = 0
        settled, next_drafts = settled[: accepted + 1], settled[rows:]
        self._next_ids.extend(settled)
        self._final = len(self._next_ids)
        if made == count:
            return Accepted(settled, Drafts(next_drafts, (after[2], after[3]) if rule.temperature else None))
        chain = _Chain()
        chain.begin(packed[rows : rows + 1], *after)
        self._draft_on(chain, count, caches[0], rule, chance_k)
        return Accepted(settled, chain.drafts(count))

    def _accept_graph(self, rule: DraftRule, count: int) -> Compiled:
        kind = _accept_kind(rule)
        if (kind, count) not in self._accepts:
            by_row = {0: 0, 1: 0, 2: 1, **({5: 0, 6: 0, 8: 0} if rule.temperature else {})}
            self._accepts[kind, count] = self._compile(kind(self.head, count), by_row)
        return self._accepts[kind, count]

    def _can_fuse(self, rule: DraftRule, count: int, args: list[Any]) -> bool:
        """Whether one graph accepts and makes all `count` drafts. It is asked for once that many are in steady use."""
        key = _accept_kind(rule), count
        if key in self._fused:
            return True
        uses = self._uses[key] = self._uses.get(key, 0) + 1
        if uses <= COMPILE_AFTER:
            return False
        chance = [torch.zeros(count, dtype=torch.float64, device=self.device)] if rule.temperature else []
        if self._accept_graph(rule, count).ready(*args, *chance):
            self._fused.add(key)
        return key in self._fused

    @functools.cached_property
    def _no_candidates(self) -> tuple[Tensor, Tensor]:
        size = min(CANDIDATES, self.head.vocab_size)
        return (
            torch.zeros(1, size, dtype=torch.int64, device=self.device),
            torch.zeros(1, size, device=self.device),
        )

    @torch.inference_mode()
    def prepare(self, rule: DraftRule) -> None:
        """Ask for the graph that answers by this rule will use at every step."""
        if self.head.depth > 1 or (rule.temperature and not self._worth_fusing(rule)):
            return
        args: list[Any] = [
            self._zero_1,
            torch.zeros(1, self.head.vocab_size, device=self.device),
            self.head.embed(self._zero_1[None]),
            self._zero_1,
            self._window(2)[0],
        ]
        if rule.temperature:
            uniform_1 = torch.zeros(1, dtype=torch.float64, device=self.device)
            args += [*self._no_candidates, self._numbers(rule), uniform_1, uniform_1]
        self._accept_graph(rule, 1).prepare(*args)

    def _worth_fusing(self, rule: DraftRule) -> bool:
        """Whether shortlists are likely to hold all that may be drawn."""
        if self._apart > 0:
            self._apart -= 1
            return False
        return rule.top_p < 1 or rule.min_p > 0 or 0 < rule.top_k < CANDIDATES


def _accept_kind(rule: DraftRule) -> type[GreedyAccept] | type[SampledAccept]:
    return SampledAccept if rule.temperature else GreedyAccept


class _Chain:
    """Drafts one after another, and what the next one follows from."""

    def __init__(self) -> None:
        self.tokens: list[Tensor] = []
        """int64 [1] each."""
        self._ids: list[Tensor] = []
        self._probs: list[Tensor] = []

    def begin(self, token_1: Tensor, row_B1D: Tensor, next_B1: Tensor, *candidates_1C: Tensor) -> None:
        """Take in a draft, the hidden state it came from, the position of the next, and what it was drawn from."""
        self.tokens.append(token_1)
        self.row_B1D, self.next_B1 = row_B1D, next_B1
        if candidates_1C:
            self._ids.append(candidates_1C[0])
            self._probs.append(candidates_1C[1])

    def add(self, results: tuple[Tensor, ...]) -> Tensor:
        """Take in what a `Draft` has returned; the hidden states of all rows."""
        token_1, row_B1D, next_B1, normed_BTD, *candidates_1C = results
        self.begin(token_1, row_B1D, next_B1, *candidates_1C)
        return normed_BTD

    def candidates(self, count: int) -> tuple[Tensor, Tensor] | None:
        """(ids [k, C], probabilities [k, C]) of the first `count`, None if they were certain."""
        if not self._ids:
            return None
        if count == 1:
            return self._ids[0], self._probs[0]
        return torch.cat(self._ids[:count]), torch.cat(self._probs[:count])

    def drafts(self, count: int) -> Drafts:
        return Drafts(torch.cat(self.tokens[:count]).tolist(), self.candidates(count))

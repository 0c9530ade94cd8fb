"""An MTP head's state for one conversation: its caches, and which rows they hold.

Legend: T rows, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsv3rt.interfaces import Cache, Compile, Compiled, DraftRule, Drafts, Verified
from dsv3rt.model.cache import reads_only_used, window
from dsv3rt_mtp.graphs import CANDIDATES, GreedyDraft, GreedyStep, SampledDraft, SampledStep

if TYPE_CHECKING:
    from dsv3rt_mtp.head import MTPHead

CATCH_UP = 512
"""Rows waiting at most; more are passed through the modules in batches of this size."""
PREPARED = 2
"""Draft counts whose steps are compiled before they are met."""
COMPILE_AFTER = 8
"""Uses of a draft count, outside fused steps, after which it is compiled for."""
MOST_APART = 32
"""Steps not to be fused, at most, after one whose shortlists were too short. There is one after the first such, and
twice as many after each that follows: where one distribution is flat, others will be."""


class MTPSession:
    """Rows wait, with the token after each, until a draft is wanted, and are then passed through the modules at once.

    Module d at a row needs the token 1+d further on, so with M modules the last M-1 rows had to do with drafts: they
    are passed again, with what settled instead.
    """

    def __init__(
        self, head: MTPHead, capacity: int, device: torch.device, decoder: nn.Module, compile: Compile
    ) -> None:
        self.head = head
        self.device = device
        self.lookback = head.depth
        self._decoder = decoder
        self._compile = compile
        self._caches = head.make_caches(capacity, device)
        self._whole = reads_only_used([head.module(depth) for depth in range(head.depth)])
        self._next_ids: list[int] = []
        """The token after each row."""
        self._final = 0
        """Rows that are in the caches of all modules, for good."""
        self._waiting: list[Tensor] = []
        """Hidden states [.., D] of the rows from `_final` on."""
        self._graphs: dict[tuple[str, int], Compiled | GreedyDraft | SampledDraft] = {}
        self._uses: dict[tuple[str, int], int] = {}
        self._steps: dict[tuple[str, int], Compiled] = {}
        self._running: set[tuple[str, int]] = set()
        """Fused steps whose graphs are there."""
        self._rule: tuple[DraftRule, Tensor] | None = None
        self._apart = self._apart_next = 0
        """Steps still not to be fused, and as many there were the last time."""

    @property
    def observed(self) -> int:
        return len(self._next_ids)

    @torch.inference_mode()
    def observe(self, token_ids: Sequence[int], hidden_TD: Tensor, position: int) -> None:
        if position < len(self._next_ids):
            self._rewind(position)
        assert position == len(self._next_ids), f"rows {len(self._next_ids)}..{position - 1} were not observed"
        self._next_ids.extend(token_ids)
        self._waiting.append(hidden_TD[: len(token_ids)])
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

    def _catch_up(self, leave: int) -> None:
        """Pass waiting rows, but the last `leave`, through all modules."""
        rows_TD = self._rows()
        start, stop = self._final, len(self._next_ids) - leave
        for at in range(start, stop, CATCH_UP):
            end = min(at + CATCH_UP, stop)
            positions_BT = torch.arange(at, end, device=self.device)[None]
            normed_BTD = self.head.norm(rows_TD[None, at - start : end - start])
            for depth, cache in enumerate(self._window(end)):
                ids_BT = torch.tensor([self._next_ids[at + depth : end + depth]], device=self.device)
                normed_BTD = self.head.advance(depth, ids_BT, normed_BTD, positions_BT, cache)
        self._final = stop
        self._waiting = [rows_TD[stop - start :]]

    @torch.inference_mode()
    def draft(self, count: int, rule: DraftRule) -> Drafts:
        depth, known = self.head.depth, len(self._next_ids)
        count = min(count, self.head.max_drafts)
        if count == 0 or known == 0:
            return Drafts([])
        size = count + depth  # rows of the graph: what a step of `count` drafts settles at most, and those seen again
        if known - self._final > size:
            self._catch_up(depth)
        rows_TD, rows = self._rows(), known - self._final
        ids = self._next_ids[self._final :] + [0] * (size - rows)
        args: list[Any] = [
            torch.tensor([ids], device=self.device),
            F.pad(rows_TD, (0, 0, 0, size - rows))[None],
            torch.tensor([self._final], device=self.device),
            torch.tensor([rows - 1], device=self.device),
            self._window(self._final + size + count),
        ]
        if rule.temperature == 0:
            drafts = Drafts(self._graph(GreedyDraft, count)(*args).tolist())
        else:
            args += [self._numbers(rule), rule.uniforms(max(count, depth)).to(self.device)]
            tokens, ids_kC, probs_kC = self._graph(SampledDraft, count)(*args)
            drafts = Drafts(tokens.tolist(), (ids_kC, probs_kC))
        again = min(depth - 1, known)
        self._final, self._waiting = known - again, [rows_TD[rows - again : rows]] if again else []
        return drafts

    def _graph(self, kind: type[GreedyDraft] | type[SampledDraft], count: int) -> Compiled | GreedyDraft | SampledDraft:
        key = (kind.__name__, count)
        if key not in self._graphs:
            self._graphs[key] = kind(self.head, count)
        # where steps are fused, or will be as soon as their graph is there, separate drafts only begin them: compiling
        # is for what is done again and again
        self._uses[key] = self._uses.get(key, 0) + (self._steps.keys() <= self._running)
        if self._uses[key] == COMPILE_AFTER:
            self._graphs[key] = self._compile(kind(self.head, count))
        return self._graphs[key]

    def _numbers(self, rule: DraftRule) -> Tensor:
        """The rule as graphs take it; made once an answer."""
        if self._rule is None or self._rule[0] is not rule:
            numbers = [rule.temperature, float(rule.top_k), rule.top_p, rule.min_p]
            self._rule = rule, torch.tensor(numbers, device=self.device)
            self._apart = self._apart_next = 0  # a seed means a text, whatever was drawn before
        return self._rule[1]

    @torch.inference_mode()
    def verify(
        self, newest: int, drafts: Drafts, position: int, caches: Sequence[Cache], rule: DraftRule
    ) -> Verified | None:
        count = len(drafts.token_ids)
        ready = self._final == len(self._next_ids) == position
        if self.head.depth > 1 or not 1 <= count <= self.head.max_drafts or not ready:
            return None
        if rule.temperature and (drafts.candidates is None or not self._worth_fusing(rule)):
            return None
        args: list[Any] = [
            torch.tensor([newest, *drafts.token_ids, position], device=self.device),
            caches,
            self._window(position + 2 * count + 1),
        ]
        if drafts.candidates is not None:
            args += [*drafts.candidates, self._numbers(rule), rule.uniforms(2 * count + 1).to(self.device)]
        step = self._step(SampledStep if rule.temperature else GreedyStep, count, args, repeatable=rule.repeatable)
        if step is None:
            return None
        packed, logits_TV, *following = step(*args)
        candidates = (following[0], following[1]) if following else None
        *tokens, accepted, fine = packed.tolist()
        if not fine:
            self._apart = self._apart_next = min(max(1, 2 * self._apart_next), MOST_APART)
            return None
        self._apart_next = 0
        settled = tokens[: accepted + 1]
        self._next_ids.extend(settled)
        self._final = len(self._next_ids)
        return Verified(settled, Drafts(tokens[count + 1 :], candidates), logits_TV)

    @torch.inference_mode()
    def prepare(self, rule: DraftRule) -> None:
        """Ask for the graphs that answers by this rule will use first."""
        if self.head.depth > 1 or (rule.temperature and not self._worth_fusing(rule)):
            return
        candidates = min(CANDIDATES, int(self.head.embed.weight.shape[0]))  # type: ignore
        for count in range(1, min(PREPARED, self.head.max_drafts) + 1):
            args: list[Any] = [
                torch.zeros(count + 2, dtype=torch.int64, device=self.device),
                self._decoder.make_caches(2, self.device),  # type: ignore[operator]
                self._window(2 * count + 1),
            ]
            if rule.temperature:
                args += [
                    torch.zeros(count, candidates, dtype=torch.int64, device=self.device),
                    torch.zeros(count, candidates, device=self.device),
                    self._numbers(rule),
                    torch.zeros(2 * count + 1, dtype=torch.float64, device=self.device),
                ]
            kind = SampledStep if rule.temperature else GreedyStep
            key = (kind.__name__, count)
            self._steps[key] = self._compile(kind(self._decoder, self.head, count))
            self._steps[key].prepare(*args)

    def _worth_fusing(self, rule: DraftRule) -> bool:
        """Whether shortlists are likely to hold all that may be drawn."""
        if self._apart > 0:
            self._apart -= 1
            return False
        return rule.top_p < 1 or rule.min_p > 0 or 0 < rule.top_k < CANDIDATES

    def _step(
        self, kind: type[GreedyStep] | type[SampledStep], count: int, args: Sequence[Any], *, repeatable: bool
    ) -> Compiled | None:
        """None while its graph is being made: separate steps, whose graphs are shared, are quicker until then. But they
        draw other random numbers, and a seed means a text whether compiled or not (`repeatable`)."""
        key = (kind.__name__, count)
        step = self._steps.get(key)
        if step is None:
            step = self._steps[key] = self._compile(kind(self._decoder, self.head, count))
        if key not in self._running:
            if step.ready(*args):
                self._running.add(key)
            elif kind is GreedyStep or not repeatable:
                return None
        return step

"""What an MTP session computes, as modules without data-dependent Python: whole graphs to compile, each for any number
of rows up to 16.

A step of k drafts is the decoder over 1+k tokens, an `Accept` with the first of the next drafts, and a `Draft` for each
further one. None of them depends on k, and only the decoder's graph holds the decoder. A k in steady use gets an
`Accept` of its own, which makes all k drafts.

Legend: B sequences (one), T rows, D hidden, V vocabulary, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dsv3rt import native
from dsv3rt.interfaces import Cache
from dsv3rt.native.drafts import leading

if TYPE_CHECKING:
    from dsv3rt_mtp.head import MTPHead

CANDIDATES = 64
"""How many of the likeliest tokens are looked at. A draft may be drawn from any distribution as long as it is reported;
sorting a whole vocabulary for each would cost more than the tail it adds. The answer's own tokens are drawn from them
only where no token beyond them could have been drawn."""


def draw_draft(logits_BV: Tensor, rule_4: Tensor, uniform_1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(a draft int64 [B], and what it was drawn from: candidate ids [B, C], their probabilities [B, C])."""
    return native.draw_draft(logits_BV, rule_4, uniform_1, min(CANDIDATES, logits_BV.shape[-1]))


class _Graph(nn.Module):
    """Passes rows through one module of a head."""

    def __init__(self, head: MTPHead, depth: int = 0) -> None:
        super().__init__()
        self.head = head
        self.depth = depth

    def rows(
        self, ids_BT: Tensor, normed_BTD: Tensor, positions_BT: Tensor, newest_1: Tensor, cache: Cache
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(logits float32 [B, V] of row `newest_1`, its hidden state [B, 1, D], the next position [B, 1], and hidden
        states [B, T, D] of all rows). Those after `newest_1` become stale slots of the cache. ids and normed: see
        `MTPHead.advance`."""
        normed_BTD = self.head.advance(self.depth, ids_BT, normed_BTD, positions_BT, cache)
        row_B1D = normed_BTD.index_select(1, newest_1)
        return self.head.logits(row_B1D)[:, 0], row_B1D, positions_BT.index_select(1, newest_1) + 1, normed_BTD


class GreedyDraft(_Graph):
    """The likeliest token after one of T rows."""

    def forward(
        self, ids_BT: Tensor, normed_BTD: Tensor, positions_BT: Tensor, newest_1: Tensor, cache: Cache
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(draft int64 [B], and of `rows` all but the logits)."""
        logits_BV, row_B1D, next_B1, normed_BTD = self.rows(ids_BT, normed_BTD, positions_BT, newest_1, cache)
        return logits_BV.argmax(-1), row_B1D, next_B1, normed_BTD


class SampledDraft(_Graph):
    """A token drawn for after one of T rows."""

    def forward(
        self,
        ids_BT: Tensor,
        normed_BTD: Tensor,
        positions_BT: Tensor,
        newest_1: Tensor,
        cache: Cache,
        rule_4: Tensor,
        uniform_1: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(as `GreedyDraft`, then what the draft was drawn from: ids [B, C], probabilities [B, C]). rule_4: see
        `native.drafts.shortlist`; uniform_1: a random number in [0, 1)."""
        logits_BV, row_B1D, next_B1, normed_BTD = self.rows(ids_BT, normed_BTD, positions_BT, newest_1, cache)
        draft_B, ids_BC, probs_BC = draw_draft(logits_BV, rule_4, uniform_1)
        return draft_B, row_B1D, next_B1, normed_BTD, ids_BC, probs_BC


class _Accept(_Graph):
    """Settle what was drafted, observe it, and draft the next `count` tokens; for heads of one module."""

    def __init__(self, head: MTPHead, count: int = 1) -> None:
        super().__init__(head)
        self.count = count

    def observe(
        self, settled_T: Tensor, hidden_BTD: Tensor, position_1: Tensor, accepted_1: Tensor, cache: Cache
    ) -> tuple[Tensor, Tensor]:
        """(hidden state [B, 1, D] of the last row that counts, next position [B, 1]).

        hidden_BTD: the main model's, before its final norm, at `position_1` and on. After an accepted row follows the
        draft it agrees with; rows after the last of them do not count.
        """
        slots_T = torch.arange(settled_T.shape[0], device=settled_T.device)
        positions_BT = (position_1 + slots_T)[None]
        normed_BTD = self.head.norm(hidden_BTD)
        row_B1D, at_B1 = self.head.advance_one(0, settled_T[None], normed_BTD, positions_BT, accepted_1, cache)
        return row_B1D, at_B1 + 1

    def drafts(
        self,
        row_B1D: Tensor,
        next_B1: Tensor,
        cache: Cache,
        choose: Callable[[Tensor, int], tuple[Tensor, ...]],
    ) -> tuple[list[tuple[Tensor, ...]], Tensor, Tensor]:
        """(what `choose(logits [B, V], k)`, a draft int64 [B] and what belongs to it, has given for each of the next
        drafts; hidden state and next position after the last of them but one)."""
        chosen = [choose(self.head.logits(row_B1D)[:, 0], 0)]
        while len(chosen) < self.count:
            row_B1D = self.head.advance(0, chosen[-1][0][:, None], row_B1D, next_B1, cache)
            next_B1 = next_B1 + 1
            chosen.append(choose(self.head.logits(row_B1D)[:, 0], len(chosen)))
        return chosen, row_B1D, next_B1


class GreedyAccept(_Accept):
    """A draft stays if it is the likeliest token."""

    def forward(
        self, drafts_T: Tensor, logits_TV: Tensor, hidden_BTD: Tensor, position_1: Tensor, cache: Cache
    ) -> tuple[Tensor, Tensor, Tensor]:
        """drafts_T: the drafts, and -1. Returns (packed int64 [T + count + 2], hidden state [B, 1, D] and next position
        [B, 1] after the last draft but one).

        packed: the likeliest token after each row, the next drafts, how many drafts were accepted, and 1 if the logits
        were numbers.
        """
        best_T = logits_TV.argmax(-1)
        accepted_1 = leading(best_T == drafts_T)
        row_B1D, next_B1 = self.observe(best_T, hidden_BTD, position_1, accepted_1, cache)
        drafts, row_B1D, next_B1 = self.drafts(row_B1D, next_B1, cache, lambda logits_BV, _: (logits_BV.argmax(-1),))
        fine_1 = logits_TV.gather(1, best_T[:, None]).isfinite().all().long()[None]
        return torch.cat([best_T, *(draft_B for (draft_B,) in drafts), accepted_1, fine_1]), row_B1D, next_B1


class SampledAccept(_Accept):
    """Lossless rejection sampling; see `native.settle_drafts`."""

    def forward(
        self,
        drafts_T: Tensor,
        logits_TV: Tensor,
        hidden_BTD: Tensor,
        position_1: Tensor,
        cache: Cache,
        draft_ids_TC: Tensor,
        draft_probs_TC: Tensor,
        rule_4: Tensor,
        uniform_T: Tensor,
        uniform_k: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """drafts_T to uniform_T: see `native.settle_drafts`; uniform_k: random numbers to draft by.

        Returns (packed as in `GreedyAccept`, hidden state, next position, and of the next drafts the candidates' ids
        and probabilities [k, C]). The last number of packed is 0, and what was settled not to be used, when a row's
        shortlist was not the whole of its distribution.
        """
        settled_T, accepted_1, fine_1 = native.settle_drafts(
            drafts_T, logits_TV, draft_ids_TC, draft_probs_TC, rule_4, uniform_T
        )
        row_B1D, next_B1 = self.observe(settled_T, hidden_BTD, position_1, accepted_1, cache)
        drafts, row_B1D, next_B1 = self.drafts(
            row_B1D, next_B1, cache, lambda logits_BV, k: draw_draft(logits_BV, rule_4, uniform_k[k : k + 1])
        )
        drafts_B, ids_BC, probs_BC = zip(*drafts, strict=True)
        packed = torch.cat([settled_T, *drafts_B, accepted_1, fine_1])
        return packed, row_B1D, next_B1, torch.cat(ids_BC), torch.cat(probs_BC)

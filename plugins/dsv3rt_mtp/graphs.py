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

if TYPE_CHECKING:
    from dsv3rt_mtp.head import MTPHead

CANDIDATES = 64
"""How many of the likeliest tokens are looked at. A draft may be drawn from any distribution as long as it is reported;
sorting a whole vocabulary for each would cost more than the tail it adds. The answer's own tokens are drawn from them
only where no token beyond them could have been drawn."""


def shortlist(logits_BV: Tensor, rule_4: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(ids [B, C], probabilities [B, C], whole [B]) of the likeliest tokens, best first; what is left out has 0.

    rule_4: temperature, top-k (0: all), top-p, min-p. `whole` says that the rule leaves out all other tokens, so that
    this is exactly `Sampler.probabilities`.
    """
    temperature, top_k, top_p, min_p = rule_4.unbind()
    vocabulary = logits_BV.shape[-1]
    size = min(CANDIDATES, vocabulary)
    best_BC, ids_BC = native.greatest(logits_BV, size)
    weights_BC = ((best_BC - best_BC[:, :1]) / temperature).exp()
    limited = (top_k > 0) & (top_k < vocabulary)
    last_1 = (top_k.long() - 1).clamp(0, size - 1)[None]
    among_BC = (best_BC >= best_BC.index_select(1, last_1)) | ~limited  # ties with the k-th stay
    all_B1 = ((logits_BV - best_BC[:, :1]) / temperature).exp().sum(-1, keepdim=True)
    mass_B1 = torch.where(limited, torch.where(among_BC, weights_BC, 0.0).sum(-1, keepdim=True), all_B1)
    before_BC = weights_BC.cumsum(-1) - weights_BC
    kept_BC = among_BC & ((before_BC < top_p * mass_B1) | (top_p >= 1)) & (weights_BC >= min_p)
    weights_BC = torch.where(kept_BC, weights_BC, 0.0)
    whole_B = ~kept_BC[:, -1] & ~(limited & among_BC[:, -1]) if size < vocabulary else torch.ones_like(kept_BC[:, 0])
    return ids_BC, weights_BC / weights_BC.sum(-1, keepdim=True), whole_B


def draw(weights_BC: Tensor, uniform: Tensor) -> Tensor:
    """int64 [B, 1]: an index with probability weights / sum(weights), from a number in [0, 1)."""
    sums_BC = weights_BC.double().cumsum(-1)
    choice_B1 = (sums_BC <= uniform * sums_BC[:, -1:]).sum(-1, keepdim=True)
    # rounding may put the point on the sum itself: the last candidate with any weight is then meant
    # (damaged weights: none has any, and whatever is drafted will be rejected)
    slots_C = torch.arange(weights_BC.shape[1], device=weights_BC.device)
    return torch.minimum(choice_B1, torch.where(weights_BC > 0, slots_C, 0).amax(-1, keepdim=True))


def leading(agreed_T: Tensor) -> Tensor:
    """int64 [1]: how many of the first are true before one is not. The last never is."""
    slots_T = torch.arange(agreed_T.shape[0], device=agreed_T.device)
    return torch.where(agreed_T, agreed_T.shape[0], slots_T).amin(0, keepdim=True)


def draw_draft(logits_BV: Tensor, rule_4: Tensor, uniform_1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(a draft int64 [B], and what it was drawn from: candidate ids [B, C], their probabilities [B, C])."""
    ids_BC, probs_BC, _ = shortlist(logits_BV, rule_4)
    return ids_BC.gather(1, draw(probs_BC, uniform_1))[:, 0], ids_BC, probs_BC


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
        `shortlist`; uniform_1: a random number in [0, 1)."""
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
    """Lossless rejection sampling (arXiv 2211.17192, algorithm 1): draft x stays with probability min(1, p(x)/q(x));
    after the last that does follows a token drawn from max(0, p - q), or from p after all."""

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
        """drafts_T: the drafts, and -1. draft_*_TC: what they were drawn from, and a row of zeros. rule_4: see
        `shortlist`. uniform_T: random numbers to accept by and, last, to draw the token after; uniform_k: to draft.

        Returns (packed as in `GreedyAccept`, hidden state, next position, and of the next drafts the candidates' ids
        and probabilities [k, C]). The last number of packed is 0, and what was settled not to be used, when a row's
        shortlist was not the whole of its distribution.
        """
        ids_TC, p_TC, whole_T = shortlist(logits_TV, rule_4)
        p_T = torch.where(ids_TC == drafts_T[:, None], p_TC, 0.0).sum(-1)
        q_T = torch.where(draft_ids_TC == drafts_T[:, None], draft_probs_TC, 0.0).sum(-1)
        accepted_1 = leading(uniform_T * q_T < p_T)  # the last row: 0 < 0
        # of the row that the next token comes from: (ids, p, ids of the draft's candidates, q), each [1, C]
        ids, p, draft_ids, q = (x.index_select(0, accepted_1) for x in (ids_TC, p_TC, draft_ids_TC, draft_probs_TC))
        left = (p - torch.where(ids[:, :, None] == draft_ids[:, None, :], q[:, None, :], 0.0).sum(-1)).clamp_min(0)
        # nothing is left when p = q but for rounding: then p itself is as good
        left = torch.where(left.sum(-1, keepdim=True) > 0, left, p)
        token_1 = ids.gather(1, draw(left, uniform_T[-1]))[0]
        slots_T = torch.arange(drafts_T.shape[0], device=drafts_T.device)
        settled_T = torch.where(slots_T < accepted_1, drafts_T, token_1)
        row_B1D, next_B1 = self.observe(settled_T, hidden_BTD, position_1, accepted_1, cache)
        drafts, row_B1D, next_B1 = self.drafts(
            row_B1D, next_B1, cache, lambda logits_BV, k: draw_draft(logits_BV, rule_4, uniform_k[k : k + 1])
        )
        fine_1 = (whole_T & p_TC.sum(-1).isfinite()).all().long()[None]
        drafts_B, ids_BC, probs_BC = zip(*drafts, strict=True)
        packed = torch.cat([settled_T, *drafts_B, accepted_1, fine_1])
        return packed, row_B1D, next_B1, torch.cat(ids_BC), torch.cat(probs_BC)

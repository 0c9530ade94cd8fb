"""What an MTP session computes, as modules of fixed shapes without data-dependent Python: whole graphs to compile.

Legend: B sequences (one), T rows, k drafts, D hidden, V vocabulary, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dsv3rt.interfaces import Cache

if TYPE_CHECKING:
    from dsv3rt_mtp.head import MTPHead

CANDIDATES = 64
"""How many of the likeliest tokens a sampled draft is drawn from. Any distribution keeps the answer's exact, as long as
it is reported; sorting a whole vocabulary for each draft would cost more than the tail it adds."""


def draft_chain(
    head: MTPHead,
    ids_BT: Tensor,
    hidden_BTD: Tensor,
    positions_BT: Tensor,
    newest_1: Tensor,
    caches: Sequence[Cache],
    count: int,
    choose: Callable[[int, Tensor], Tensor],
) -> list[Tensor]:
    """`count` drafts, each int64 [B, 1], from T rows of which row `newest_1` is the last that counts.

    ids_BT: the token after each row; hidden_BTD: the main model's, before its final norm. `choose(d, logits_BV)` picks
    draft d. All modules pass over the T rows, so that their caches hold them; rows after `newest_1` become stale slots.
    """
    normed_BTD = head.norm(hidden_BTD)
    row_B1D = normed_BTD
    last = head.depth - 1
    slots_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    drafts: list[Tensor] = []
    for d in range(max(count, head.depth)):
        if d <= last:
            normed_BTD = head.advance(d, ids_BT, normed_BTD, positions_BT, caches[d])
            row_B1D = normed_BTD.index_select(1, newest_1)
        else:
            position_B1 = positions_BT.index_select(1, newest_1) + (d - last)
            row_B1D = head.advance(last, drafts[-1], row_B1D, position_B1, caches[last])
        drafts.append(choose(d, head.logits(row_B1D)[:, 0])[:, None])
        if d < last:  # the next module sees, at every row, the token one further on
            ids_BT = torch.where(slots_T == newest_1, drafts[-1], ids_BT.roll(-1, 1))
    return drafts[:count]


class GreedyDraft(nn.Module):
    """Observe T rows and draft the likeliest tokens: int64 [k]."""

    def __init__(self, head: MTPHead, count: int) -> None:
        super().__init__()
        self.head = head
        self.count = count

    def forward(
        self, ids_BT: Tensor, hidden_BTD: Tensor, position_1: Tensor, newest_1: Tensor, caches: Sequence[Cache]
    ) -> Tensor:
        positions_BT = (position_1 + torch.arange(ids_BT.shape[1], device=ids_BT.device))[None]
        drafts = draft_chain(
            self.head,
            ids_BT,
            hidden_BTD,
            positions_BT,
            newest_1,
            caches,
            self.count,
            lambda d, logits_BV: logits_BV.argmax(-1),
        )
        return torch.cat(drafts, dim=1)[0]


class SampledDraft(nn.Module):
    """Observe T rows and draw drafts: (tokens [k], candidate ids [k, C], their probabilities [k, C])."""

    def __init__(self, head: MTPHead, count: int) -> None:
        super().__init__()
        self.head = head
        self.count = count

    def forward(
        self,
        ids_BT: Tensor,
        hidden_BTD: Tensor,
        position_1: Tensor,
        newest_1: Tensor,
        caches: Sequence[Cache],
        rule_4: Tensor,
        uniform_k: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """rule_4: temperature, top-k (at most C), top-p, min-p; uniform_k: a random number in [0, 1) for each module or
        draft, whichever are more."""
        ids, probs = [], []

        def choose(d: int, logits_BV: Tensor) -> Tensor:
            ids_BC, probs_BC = shortlist(logits_BV, rule_4)
            ids.append(ids_BC)
            probs.append(probs_BC)
            passed_BC = probs_BC.cumsum(-1) <= uniform_k[d]
            # rounding may leave the sum below the number drawn: the last candidate with any weight is then meant
            choice_B1 = torch.minimum(passed_BC.sum(-1, keepdim=True), (probs_BC > 0).sum(-1, keepdim=True) - 1)
            # damaged weights: nothing has a weight, and whatever is drafted will be rejected
            return ids_BC.gather(1, choice_B1.clamp_min(0))[:, 0]

        positions_BT = (position_1 + torch.arange(ids_BT.shape[1], device=ids_BT.device))[None]
        drafts = draft_chain(self.head, ids_BT, hidden_BTD, positions_BT, newest_1, caches, self.count, choose)
        count = self.count
        return torch.cat(drafts, dim=1)[0], torch.cat(ids[:count]), torch.cat(probs[:count])


def shortlist(logits_BV: Tensor, rule_4: Tensor) -> tuple[Tensor, Tensor]:
    """(ids [B, C], probabilities [B, C]) of the likeliest tokens, best first; those the rule leaves out get 0."""
    temperature, top_k, top_p, min_p = rule_4.unbind()
    best_BC, ids_BC = logits_BV.topk(min(CANDIDATES, logits_BV.shape[-1]), dim=-1)
    probs_BC = ((best_BC - best_BC[:, :1]) / temperature).softmax(-1)
    before_BC = probs_BC.cumsum(-1) - probs_BC
    kept_BC = (before_BC < top_p) & (probs_BC >= min_p * probs_BC[:, :1])
    kept_BC = kept_BC & (torch.arange(best_BC.shape[-1], device=best_BC.device) < top_k)
    probs_BC = torch.where(kept_BC, probs_BC, 0.0)
    return ids_BC, probs_BC / probs_BC.sum(-1, keepdim=True)


class FusedStep(nn.Module):
    """A greedy step as one graph: verify 1+k tokens, accept, observe, and draft k more."""

    def __init__(self, decoder: nn.Module, head: MTPHead, count: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.head = head
        self.count = count

    def forward(
        self, ids_BT: Tensor, position_1: Tensor, caches: Sequence[Cache], head_caches: Sequence[Cache]
    ) -> tuple[Tensor, Tensor]:
        """ids_BT: the newest token, at `position_1`, and k drafts. Returns (packed int64 [T + k + 2], logits_TV).

        packed: the likeliest token after each row, the next k drafts, how many drafts were accepted, and 1 if the
        logits were numbers.
        """
        positions_BT = (position_1 + torch.arange(ids_BT.shape[1], device=ids_BT.device))[None]
        logits_BTV, hidden_BTD = self.decoder(ids_BT, positions_BT, caches, None)
        best_BT = logits_BTV.argmax(-1)
        agreed_k = (best_BT[0, :-1] == ids_BT[0, 1:]).long()
        accepted_1 = agreed_k.cumprod(0).sum(0, keepdim=True)
        # after an accepted row follows the draft it agrees with; rows after the last of them do not count
        drafts = draft_chain(
            self.head,
            best_BT,
            hidden_BTD,
            positions_BT,
            accepted_1,
            head_caches,
            self.count,
            lambda d, logits_BV: logits_BV.argmax(-1),
        )
        finite_1 = logits_BTV.amax(-1).isfinite().all().long()[None]
        packed = torch.cat([best_BT[0], *(draft_B1[0] for draft_B1 in drafts), accepted_1, finite_1])
        return packed, logits_BTV[0]

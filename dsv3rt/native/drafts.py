"""Drawing drafts, and lossless rejection sampling (arXiv 2211.17192, algorithm 1), both from the likeliest tokens of
each row: one native operator each for float32 on CPU, else plain torch.

Legend: T rows, B rows too, V vocabulary, C candidates of a row, best first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3rt.native.ops import greatest, runs_natively


def draw_draft(logits_BV: Tensor, rule_4: Tensor, uniform_1: Tensor, candidates: int) -> tuple[Tensor, Tensor, Tensor]:
    """(a token int64 [B], and what it was drawn from: ids [B, C], probabilities [B, C]; see `shortlist`).

    uniform_1: a random number in [0, 1), float64.
    """
    if runs_natively(logits_BV):
        result: tuple[Tensor, Tensor, Tensor] = torch.ops.dsv3rt.draw_draft(logits_BV, rule_4, uniform_1, candidates)
        return result
    ids_BC, probs_BC, _ = shortlist(logits_BV, rule_4, candidates)
    return ids_BC.gather(1, draw(probs_BC, uniform_1))[:, 0], ids_BC, probs_BC


def settle_drafts(
    drafts_T: Tensor,
    logits_TV: Tensor,
    draft_ids_TC: Tensor,
    draft_probs_TC: Tensor,
    rule_4: Tensor,
    uniform_T: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """(the accepted drafts and, in every row after them, the token that follows them, int64 [T]; how many were accepted
    [1]; 1, or 0 where a row's shortlist is not the whole of its distribution and nothing of this counts [1]).

    Draft x stays with probability min(1, p(x)/q(x)); after the last that does follows a token drawn from max(0, p - q),
    or from p after all. drafts_T: the drafts, and -1. draft_*_TC: what they were drawn from, and a row of zeros.
    uniform_T: random numbers in [0, 1), float64, to accept by and, the last, to draw by.
    """
    if runs_natively(logits_TV):
        result: tuple[Tensor, Tensor, Tensor] = torch.ops.dsv3rt.settle_drafts(
            drafts_T, logits_TV, draft_ids_TC, draft_probs_TC, rule_4, uniform_T
        )
        return result
    return _plain_settle(drafts_T, logits_TV, draft_ids_TC, draft_probs_TC, rule_4, uniform_T)


def _plain_settle(
    drafts_T: Tensor,
    logits_TV: Tensor,
    draft_ids_TC: Tensor,
    draft_probs_TC: Tensor,
    rule_4: Tensor,
    uniform_T: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    ids_TC, p_TC, whole_T = shortlist(logits_TV, rule_4, draft_ids_TC.shape[1])
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
    return settled_T, accepted_1, (whole_T & p_TC.sum(-1).isfinite()).all().long()[None]


def shortlist(logits_BV: Tensor, rule_4: Tensor, candidates: int) -> tuple[Tensor, Tensor, Tensor]:
    """(ids [B, C], probabilities [B, C], whole [B]) of the likeliest tokens, best first; what is left out has 0.

    rule_4: temperature, top-k (0: all), top-p, min-p. `whole` says that the rule leaves out all other tokens, so that
    this is exactly `Sampler.probabilities`.
    """
    temperature, top_k, top_p, min_p = rule_4.unbind()
    vocabulary = logits_BV.shape[-1]
    best_BC, ids_BC = greatest(logits_BV, candidates)
    weights_BC = ((best_BC - best_BC[:, :1]) / temperature).exp()
    limited = (top_k > 0) & (top_k < vocabulary)
    last_1 = (top_k.long() - 1).clamp(0, candidates - 1)[None]
    among_BC = (best_BC >= best_BC.index_select(1, last_1)) | ~limited  # ties with the k-th stay
    all_B1 = ((logits_BV - best_BC[:, :1]) / temperature).exp().sum(-1, keepdim=True)
    mass_B1 = torch.where(limited, torch.where(among_BC, weights_BC, 0.0).sum(-1, keepdim=True), all_B1)
    before_BC = weights_BC.cumsum(-1) - weights_BC
    kept_BC = among_BC & ((before_BC < top_p * mass_B1) | (top_p >= 1)) & (weights_BC >= min_p)
    weights_BC = torch.where(kept_BC, weights_BC, 0.0)
    if candidates < vocabulary:
        whole_B = ~kept_BC[:, -1] & ~(limited & among_BC[:, -1])
    else:
        whole_B = torch.ones_like(kept_BC[:, 0])
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

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

Choose = Callable[[int, Tensor], Tensor]
"""(d, logits [B, V]) -> draft d, int64 [B]."""

CANDIDATES = 64
"""How many of the likeliest tokens are looked at. A draft may be drawn from any distribution as long as it is reported;
sorting a whole vocabulary for each would cost more than the tail it adds. The answer's own tokens are drawn from them
only where no token beyond them could have been drawn."""


def draft_chain(
    head: MTPHead,
    ids_BT: Tensor,
    normed_BTD: Tensor,
    positions_BT: Tensor,
    newest_1: Tensor,
    caches: Sequence[Cache],
    count: int,
    choose: Choose,
) -> Tensor:
    """`count` drafts, int64 [B, k], from T rows of which row `newest_1` is the last that counts.

    ids_BT: the token after each row; normed_BTD: the main model's hidden states, after its final norm. All modules pass
    over the T rows, so that their caches hold them; rows after `newest_1` become stale slots.
    """
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
    return torch.cat(drafts[:count], dim=1)


def likeliest(d: int, logits_BV: Tensor) -> Tensor:
    """Greedy drafting's choice."""
    return logits_BV.argmax(-1)


class Drawing:
    """Sampled drafting's choice; remembers what each draft was drawn from."""

    def __init__(self, rule_4: Tensor, uniform_k: Tensor) -> None:
        self.rule_4, self.uniform_k = rule_4, uniform_k
        self.ids: list[Tensor] = []
        self.probs: list[Tensor] = []

    def __call__(self, d: int, logits_BV: Tensor) -> Tensor:
        ids_BC, probs_BC, _ = shortlist(logits_BV, self.rule_4)
        self.ids.append(ids_BC)
        self.probs.append(probs_BC)
        return ids_BC.gather(1, draw(probs_BC, self.uniform_k[d]))[:, 0]

    def candidates(self, count: int) -> tuple[Tensor, Tensor]:
        """(ids [k, C], probabilities [k, C]) of the first `count` drafts."""
        return torch.cat(self.ids[:count]), torch.cat(self.probs[:count])


def shortlist(logits_BV: Tensor, rule_4: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(ids [B, C], probabilities [B, C], whole [B]) of the likeliest tokens, best first; what is left out has 0.

    rule_4: temperature, top-k (0: all), top-p, min-p. `whole` says that the rule leaves out all other tokens, so that
    this is exactly `Sampler.probabilities`.
    """
    temperature, top_k, top_p, min_p = rule_4.unbind()
    vocabulary = logits_BV.shape[-1]
    size = min(CANDIDATES, vocabulary)
    best_BC, ids_BC = logits_BV.topk(size, dim=-1)
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


def leading(agreed_k: Tensor) -> Tensor:
    """int64 [1]: how many of the first are true before one is not."""
    slots_k = torch.arange(agreed_k.shape[0], device=agreed_k.device)
    return torch.where(agreed_k, agreed_k.shape[0], slots_k).amin(0, keepdim=True)


def positions_from(position_1: Tensor, ids_BT: Tensor) -> Tensor:
    """int64 [B, T]: those of rows that begin at `position_1`."""
    return (position_1 + torch.arange(ids_BT.shape[1], device=ids_BT.device))[None]


class _Graph(nn.Module):
    def __init__(self, head: MTPHead, count: int) -> None:
        super().__init__()
        self.head = head
        self.count = count


class GreedyDraft(_Graph):
    """Observe T rows and draft the likeliest tokens: int64 [k]."""

    def forward(
        self, ids_BT: Tensor, hidden_BTD: Tensor, position_1: Tensor, newest_1: Tensor, caches: Sequence[Cache]
    ) -> Tensor:
        """hidden_BTD: the main model's, before its final norm."""
        positions_BT, normed_BTD = positions_from(position_1, ids_BT), self.head.norm(hidden_BTD)
        return draft_chain(self.head, ids_BT, normed_BTD, positions_BT, newest_1, caches, self.count, likeliest)[0]


class SampledDraft(_Graph):
    """Observe T rows and draw drafts: (tokens [k], candidate ids [k, C], their probabilities [k, C])."""

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
        """rule_4: see `shortlist`; uniform_k: random numbers in [0, 1), one a module or draft, whichever are more."""
        drawing = Drawing(rule_4, uniform_k)
        positions_BT, normed_BTD = positions_from(position_1, ids_BT), self.head.norm(hidden_BTD)
        drafts_Bk = draft_chain(self.head, ids_BT, normed_BTD, positions_BT, newest_1, caches, self.count, drawing)
        return drafts_Bk[0], *drawing.candidates(self.count)


class _Step(_Graph):
    """A step as one graph: verify 1+k tokens, accept, observe, and draft k more; for heads of one module."""

    def __init__(self, decoder: nn.Module, head: MTPHead, count: int) -> None:
        super().__init__(head, count)
        self.decoder = decoder

    def run(self, tokens: Tensor, caches: Sequence[Cache]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """tokens [T + 1]: the newest token, k drafts, the newest token's position.
        Returns (ids [B, T], positions [B, T], normed hidden states [B, T, D], logits float32 [T, V])."""
        ids_BT = tokens[None, :-1]
        positions_BT = positions_from(tokens[-1:], ids_BT)
        normed_BTD = self.head.norm(self.decoder.hidden(ids_BT, positions_BT, caches))  # type: ignore[operator]
        return ids_BT, positions_BT, normed_BTD, self.head.logits(normed_BTD)[0]


class GreedyStep(_Step):
    """Greedy acceptance: a draft stays if it is the likeliest token."""

    def forward(self, tokens: Tensor, caches: Sequence[Cache], head_caches: Sequence[Cache]) -> tuple[Tensor, Tensor]:
        """tokens: see `run`. Returns (packed int64 [T + k + 2], logits_TV).

        packed: the likeliest token after each row, the next k drafts, how many drafts were accepted, and 1 if the
        logits were numbers.
        """
        ids_BT, positions_BT, normed_BTD, logits_TV = self.run(tokens, caches)
        best_T = logits_TV.argmax(-1)
        accepted_1 = leading(best_T[:-1] == ids_BT[0, 1:])
        # after an accepted row follows the draft it agrees with; rows after the last of them do not count
        drafts_Bk = draft_chain(
            self.head, best_T[None], normed_BTD, positions_BT, accepted_1, head_caches, self.count, likeliest
        )
        fine_1 = logits_TV.gather(1, best_T[:, None]).isfinite().all().long()[None]
        return torch.cat([best_T, drafts_Bk[0], accepted_1, fine_1]), logits_TV


class SampledStep(_Step):
    """Lossless rejection sampling (arXiv 2211.17192, algorithm 1): draft x stays with probability min(1, p(x)/q(x));
    after the last that does follows a token drawn from max(0, p - q), or from p after all k."""

    def forward(
        self,
        tokens: Tensor,
        caches: Sequence[Cache],
        head_caches: Sequence[Cache],
        draft_ids_kC: Tensor,
        draft_probs_kC: Tensor,
        rule_4: Tensor,
        uniforms: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """draft_*_kC: what the drafts were drawn from. rule_4: see `shortlist`. uniforms [k + 1 + k]: random numbers to
        accept by, to draw the token after, and to draw drafts.

        Returns (packed as in `GreedyStep`, logits_TV, and of the next drafts the ids and probabilities [k, C]). The
        last number of packed is 0, and what was settled not to be used, when a row's shortlist was not the whole of
        its distribution.
        """
        k = self.count
        ids_BT, positions_BT, normed_BTD, logits_TV = self.run(tokens, caches)
        drafts_k = ids_BT[0, 1:]
        ids_TC, p_TC, whole_T = shortlist(logits_TV, rule_4)
        p_k = torch.where(ids_TC[:-1] == drafts_k[:, None], p_TC[:-1], 0.0).sum(-1)
        q_k = torch.where(draft_ids_kC == drafts_k[:, None], draft_probs_kC, 0.0).sum(-1)
        accepted_1 = leading(uniforms[:k] * q_k < p_k)
        same_kCC = ids_TC[:-1, :, None] == draft_ids_kC[:, None, :]
        q_kC = torch.where(same_kCC, draft_probs_kC[:, None, :], 0.0).sum(-1)
        left_TC = torch.cat([(p_TC[:-1] - q_kC).clamp_min(0), p_TC[-1:]])
        # nothing is left when p = q but for rounding: then p itself is as good
        left_TC = torch.where(left_TC.sum(-1, keepdim=True) > 0, left_TC, p_TC)
        choice_B1 = draw(left_TC.index_select(0, accepted_1), uniforms[k])
        token_1 = ids_TC.index_select(0, accepted_1).gather(1, choice_B1)[0]
        slots_T = torch.arange(k + 1, device=tokens.device)
        settled_T = torch.where(slots_T < accepted_1, torch.cat([drafts_k, token_1]), token_1)
        drawing = Drawing(rule_4, uniforms[k + 1 :])
        drafts_Bk = draft_chain(
            self.head, settled_T[None], normed_BTD, positions_BT, accepted_1, head_caches, k, drawing
        )
        fine_1 = (whole_T & p_TC.sum(-1).isfinite()).all().long()[None]
        return torch.cat([settled_T, drafts_Bk[0], accepted_1, fine_1]), logits_TV, *drawing.candidates(k)

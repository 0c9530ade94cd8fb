"""Which drafts stay, and the token after them: the same tokens, or the same distribution, as without drafting.

Legend: T = 1 + k rows of logits, k drafts, V vocabulary, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dsv3rt.generate.sampling import Sampler
from dsv3rt.interfaces import Drafts


def settle(sampler: Sampler, logits_TV: Tensor, drafts: Drafts, history: Sequence[int]) -> list[int]:
    """The accepted drafts and the token after them. `logits_TV`: after the newest token and after each draft.

    `history` is every token up to and with the newest one; the repetition penalty reads it, and the drafts before each
    row with it.
    """
    penalised = sampler.params.repetition_penalty != 1
    before: list[int] = list(history) if penalised else []
    settled: list[int] = []
    for j, draft in enumerate(drafts.token_ids):
        if sampler.params.greedy:
            token = sampler.greedy(logits_TV[j], before)
        else:
            token = _rejection(sampler, logits_TV[j], before, drafts, j)
        settled.append(token)
        if token != draft:
            return settled
        if penalised:
            before.append(draft)
    settled.append(sampler.next_token(logits_TV[len(drafts.token_ids)], before))
    return settled


def _rejection(sampler: Sampler, logits_V: Tensor, before: Sequence[int], drafts: Drafts, j: int) -> int:
    """The draft with probability min(1, p/q), else a token drawn from max(0, p - q) (arXiv 2211.17192, algorithm 1)."""
    draft = drafts.token_ids[j]
    p_V = sampler.probabilities(logits_V, before)
    uniform = float(sampler.uniforms(1))
    if drafts.candidates is None:
        if uniform < float(p_V[draft]):
            return draft
        rest_V = p_V.index_fill(0, p_V.new_tensor([draft]).long(), 0.0)
    else:
        ids_C, q_C = drafts.candidates[0][j], drafts.candidates[1][j]
        q = float(q_C[ids_C == draft].sum())
        if uniform * q < float(p_V[draft]):
            return draft
        rest_V = p_V.scatter_add(0, ids_C, -q_C).clamp_(min=0)
    # nothing is left when p = q but for rounding: then p itself is as good
    return sampler.draw(rest_V if float(rest_V.sum()) > 0 else p_V)

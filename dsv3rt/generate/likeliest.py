"""The sampling rule for the few likeliest tokens, in plain numbers.

Nearly always the rule keeps a handful of tokens. Then calling tensor operations is what sampling costs, and a loop over
a few numbers takes less than two of them.

Shape legend: V vocabulary, C those looked at, K tokens that are kept.
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_left, bisect_right
from itertools import accumulate

from torch import Tensor

from dsv3rt import native

LOOKED_AT = 64


def likeliest(
    scores_V: Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[list[int], list[float]] | None:
    """(ids [K] ascending, weights [K]) of the tokens that the rule keeps: temperature, top-k (0: all), top-p, min-p.

    None where it may keep others than the `LOOKED_AT` likeliest, or the scores are not numbers. Weights are in
    proportion to the probabilities, the largest 1.
    """
    vocabulary = scores_V.numel()
    limited = 0 < top_k < vocabulary
    everything = vocabulary <= LOOKED_AT
    if not everything and (top_k > LOOKED_AT if limited else top_p >= 1 and min_p == 0):
        return None
    best_1C, ids_1C = native.greatest(scores_V[None], min(LOOKED_AT, vocabulary))
    scores = best_1C[0].tolist()
    top = scores[0]
    if not math.isfinite(top):
        return None
    count = len(scores)
    if limited:
        count = top_k
        while count < len(scores) and scores[count] == scores[top_k - 1]:  # ties with the k-th stay
            count += 1
        if count == len(scores) and not everything:
            return None
    weights = [math.exp((score - top) / temperature) for score in scores[:count]]
    whole = limited or everything
    """Whether what is left out so far has no part in it."""
    if top_p < 1:
        sums = list(accumulate(weights))
        most = sums[-1] if whole else sums[-1] + (vocabulary - count) * weights[-1]
        kept = bisect_left(sums, top_p * most)
        if kept != bisect_left(sums, top_p * sums[-1]):  # it depends on what the others weigh
            kept = bisect_left(sums, top_p * float(scores_V.sub(top).div_(temperature).exp_().sum()))
        whole = whole or kept < count
        count = min(kept + 1, count)
    if min_p > 0:
        kept = bisect_right(weights, -min_p, hi=count, key=operator.neg)
        whole = whole or kept < count
        count = kept
    if not whole:
        return None
    kept_ids = sorted(zip(ids_1C[0].tolist()[:count], weights, strict=False))
    return [token for token, _ in kept_ids], [weight for _, weight in kept_ids]

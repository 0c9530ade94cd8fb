"""Whether what was drawn has the distribution it should have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


def chi_square(counts: Counter[tuple[int, ...]], expected: Mapping[tuple[int, ...], float]) -> tuple[float, int]:
    """(statistic, degrees of freedom) of Pearson's test; outcomes expected fewer than five times are pooled.

    The statistic has the mean of `freedom` and a standard deviation of sqrt(2 freedom) where `counts` were drawn from
    `expected`, outcome -> probability. Raises AssertionError for an outcome that was impossible.
    """
    total = sum(counts.values())
    pooled_seen = pooled_expected = statistic = 0.0
    cells = 0
    for outcome, probability in expected.items():
        if probability * total < 5:
            pooled_seen += counts[outcome]
            pooled_expected += probability * total
        else:
            statistic += (counts[outcome] - probability * total) ** 2 / (probability * total)
            cells += 1
    if pooled_expected >= 1:
        statistic += (pooled_seen - pooled_expected) ** 2 / pooled_expected
        cells += 1
    assert not set(counts) - {outcome for outcome, probability in expected.items() if probability > 0}
    return statistic, cells - 1

"""How many tokens to draft: what is accepted and what steps cost decide, per conversation.

With acceptance a_1, a_2, ... (of draft j, given that those before it were accepted) a step of k drafts settles
1 + a_1 + a_1 a_2 + ... tokens on average (arXiv 2211.17192, section 3.1, without assuming equal a). The count with
the most tokens per second is taken; others are looked at again now and then, ever more rarely while nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

MEMORY = 0.97
"""What a past draft counts for after another one at the same position: about thirty are remembered."""
PRIOR = 4.0
"""How many drafts the first guess is worth."""
SMOOTHING = 0.2
"""Weight of the newest step's cost."""
OUTLIER = 3.0
"""A step that costs this many times the usual was interrupted by something else."""
FIRST_LOOK, LAST_LOOK = 64, 2048
"""Steps between looks at other counts: the first interval, doubled each time nothing changes, and the longest."""
LOOK_STEPS = 2
"""Steps of one look, beside the one that begins drafting."""
QUICKER = 0.6
"""A step that takes less than this share of the usual: compiled graphs have taken over, if the next one does too."""
MARGIN = 1.02
"""How much better another count must be to change to it: changing is not free."""


@dataclass
class Meter:
    """Acceptance by position, forgetting slowly."""

    tried: list[float] = field(default_factory=list)
    accepted: list[float] = field(default_factory=list)

    def record(self, drafted: int, accepted: int) -> None:
        """`accepted` of `drafted` were; those after the first rejected one say nothing."""
        for j in range(min(drafted, accepted + 1)):
            if j == len(self.tried):
                self.tried.append(0.0)
                self.accepted.append(0.0)
            self.tried[j] = self.tried[j] * MEMORY + 1.0
            self.accepted[j] = self.accepted[j] * MEMORY + (j < accepted)

    def rate(self, j: int) -> float:
        """Estimated acceptance of draft j (from 0). With nothing seen, as the draft before; the first: 0.7."""
        guess = 0.7 if j == 0 else self.rate(j - 1)
        if j >= len(self.tried):
            return guess
        return (self.accepted[j] + PRIOR * guess) / (self.tried[j] + PRIOR)

    def tokens(self, count: int) -> float:
        """Tokens a step of `count` drafts is expected to settle."""
        total = reached = 1.0
        for j in range(count):
            reached *= self.rate(j)
            total += reached
        return total


@dataclass
class Costs:
    """Seconds a step of so many drafts takes, drafting included."""

    measured: dict[int, float] = field(default_factory=dict)
    _quick: int = 0
    """Steps in a row that were much quicker than usual."""

    def record(self, count: int, seconds: float) -> bool:
        """Take note of a step; True when all that was measured before it is out of date (and has been forgotten)."""
        old = self.measured.get(count, seconds)
        self._quick = self._quick + 1 if seconds < QUICKER * old else 0
        if self._quick == 2:
            self._quick = 0
            self.measured.clear()
            self.measured[count] = seconds
            return True
        self.measured[count] = old + SMOOTHING * (min(seconds, OUTLIER * old) - old)
        return False

    def of(self, count: int) -> float | None:
        """As measured; else along the line through the two nearest measured; None when too little is known."""
        if count in self.measured:
            return self.measured[count]
        known = sorted(self.measured, key=lambda other: (abs(other - count), other))
        if len(known) < 2:
            return None
        (near, far), slope_min = known[:2], 0.0
        slope = (self.measured[far] - self.measured[near]) / (far - near)
        return max(self.measured[near] + max(slope, slope_min) * (count - near), 1e-9)


class TypicalCosts(Costs):
    """What steps cost on most machines, relative to one without drafts; no clock changes it."""

    def __init__(self, limit: int) -> None:
        super().__init__({count: 1 + 0.3 * count for count in range(limit + 1)})

    def record(self, count: int, seconds: float) -> bool:
        """Stays as it is."""
        return False


class FixedCount:
    """As many drafts as the user said."""

    def __init__(self, count: int) -> None:
        self.count = count

    def choose(self) -> int:
        return self.count

    def record(self, drafted: int, accepted: int, seconds: float | None) -> None:
        """Nothing to learn."""


class AutoCount:
    """The count with the most expected tokens per second, from 0 to `limit`."""

    def __init__(self, limit: int, costs: Costs | None = None, meter: Meter | None = None) -> None:
        self.limit = limit
        self.costs = costs if costs is not None else Costs()
        self.meter = meter if meter is not None else Meter()
        self.best = min(1, limit)
        self._interval = FIRST_LOOK
        self._plan = self._steps()

    def choose(self) -> int:
        """For the next step."""
        return next(self._plan)

    def record(self, drafted: int, accepted: int, seconds: float | None) -> None:
        """A step has ended. `seconds` None: its time says nothing (it changed from one count to another)."""
        self.meter.record(drafted, accepted)
        if seconds is not None and self.costs.record(drafted, seconds):
            self._interval = FIRST_LOOK
            self._plan = self._steps()

    def rate(self, count: int) -> float:
        """Expected tokens per second; what was never measured counts as worth a look."""
        cost = self.costs.of(count)
        return float("inf") if cost is None else self.meter.tokens(count) / cost

    def _steps(self) -> Iterator[int]:
        """The counts to use, step by step, for ever."""
        if self.limit == 0:
            while True:
                yield 0
        yield from [0] * LOOK_STEPS  # what not drafting costs: everything is compared with it
        yield from [1] * (LOOK_STEPS + 1)
        while True:
            changed = self._decide()
            self._interval = FIRST_LOOK if changed else min(2 * self._interval, LAST_LOOK)
            for step in range(self._interval):
                yield self.best
                if step % 8 == 7:
                    self._decide()
            yield from self._look()

    def _decide(self) -> bool:
        """Take the best count; say whether that is another one."""
        best = max(range(self.limit + 1), key=self.rate)
        if best == self.best or self.rate(best) < MARGIN * self.rate(self.best):
            return False
        self.best = best
        return True

    def _look(self) -> Iterator[int]:
        """Freshen what is known of the counts beside the best one, and of not drafting."""
        around = {0, self.best - 1, self.best + 1} - {self.best, -1, self.limit + 1}
        for count in sorted(around):
            yield from [count] * (LOOK_STEPS + (count > 0))

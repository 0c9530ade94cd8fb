"""How many tokens to draft: what is accepted and what steps cost decide, per conversation.

With acceptance a_1, a_2, ... (of draft j, given that those before it were accepted) a step of k drafts settles
1 + a_1 + a_1 a_2 + ... tokens on average (arXiv 2211.17192, section 3.1, without assuming equal a). The count with
the most tokens per second is taken: one more is tried for as long as that pays, and then others are looked at again now
and then, ever more rarely while nothing changes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

MEMORY = 0.97
"""What a past draft counts for after another one at the same position: about thirty are remembered."""
PRIOR = 2.0
"""How many drafts the first guess is worth."""
RECENT = 9
"""How many of the newest steps of a count say what it costs: their median, which an interruption does not move."""
OFTEN = 4
"""Of a count that has been in use for `RECENT` steps, one step in so many is timed: noting a time takes some itself."""
FIRST_LOOK, LAST_LOOK = 128, 4096
"""Steps between looks at other counts: the first interval, doubled each time nothing changes, and the longest."""
LOOK_STEPS = 3
"""Steps of one look, beside the one that begins drafting."""
QUICKER = 0.6
"""A step that takes less than this share of the usual: compiled graphs have taken over, if the next one does too."""
MARGIN = 1.03
"""How much better another count must be to change to it: changing is not free."""
HOPELESS, RARELY = 0.9, 4
"""A draft a step that gives less than this share of the tokens per second without: how many times longer it takes until
the next look, since every look costs several steps."""


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


class Costs:
    """Seconds a step of so many drafts takes, drafting included.

    A machine that becomes slower or faster does so for every count: what is known of those not in use follows the one
    that is, else a look at a busy moment would decide for a long time.
    """

    def __init__(self) -> None:
        self._recent: dict[int, deque[float]] = {}
        self._median: dict[int, float] = {}
        self._pace = 1.0
        """How slow the machine is, relative to when measuring began."""
        self._paces: dict[int, float] = {}
        """What that was when a count was used last."""
        self._quick = 0
        """Steps in a row that were much quicker than usual."""

    def record(self, count: int, seconds: float) -> bool:
        """Take note of a step; True when all that was measured before it is out of date (and has been forgotten)."""
        usual = self.measured(count)
        self._quick = self._quick + 1 if usual is not None and seconds < QUICKER * usual else 0
        outdated = self._quick == 2
        if outdated:
            self._quick = 0
            self._recent.clear()
            self._median.clear()
            usual = None
        recent = self._recent.setdefault(count, deque(maxlen=RECENT))
        if usual is not None and (factor := self._pace / self._paces[count]) != 1:
            recent.extend([recent.popleft() * factor for _ in range(len(recent))])
        known = len(recent) == RECENT
        recent.append(seconds)
        self._median[count] = median = sorted(recent)[(len(recent) - 1) // 2]
        if known and usual is not None:
            self._pace *= median / usual
        self._paces[count] = self._pace
        return outdated

    def measured(self, count: int) -> float | None:
        """The median of the newest steps, of two the lower, at the present pace; None when there were none."""
        median = self._median.get(count)
        return None if median is None else median * (self._pace / self._paces[count])

    def of(self, count: int) -> float | None:
        """As measured; else along the line through the two nearest measured; None when too little is known."""
        if (known := self.measured(count)) is not None:
            return known
        near = sorted(self._recent, key=lambda other: (abs(other - count), other))[:2]
        values = [value for value in map(self.measured, near) if value is not None]
        if len(values) < 2:
            return None
        slope = (values[1] - values[0]) / (near[1] - near[0])
        return max(values[0] + max(slope, 0.0) * (count - near[0]), 1e-9)


class TypicalCosts(Costs):
    """What steps cost on most machines, relative to one without drafts; no clock changes it."""

    def record(self, count: int, seconds: float) -> bool:
        """Stays as it is."""
        return False

    def of(self, count: int) -> float:
        return 1 + 0.3 * count


class FixedCount:
    """As many drafts as the user said, after `looks` steps without, which tell what these cost."""

    def __init__(self, count: int, looks: int = 0) -> None:
        self.count = count
        self._looks = looks

    def choose(self) -> int:
        self._looks -= 1
        return 0 if self._looks >= 0 else self.count

    def record(self, drafted: int, accepted: int, seconds: float | None) -> None:
        """Nothing to learn."""


class AutoCount:
    """The count with the most expected tokens per second, from 0 to `limit`."""

    def __init__(self, limit: int, costs: Costs | None = None, meter: Meter | None = None) -> None:
        self.limit = limit
        self.costs = costs if costs is not None else Costs()
        self.meter = meter if meter is not None else Meter()
        self.best = min(1, limit)
        self._used, self._in_a_row = -1, 0
        """The count that was timed last, and for how many steps it has been that."""
        self._interval = FIRST_LOOK
        self._plan = self._steps()

    def choose(self) -> int:
        """For the next step."""
        return next(self._plan)

    def record(self, drafted: int, accepted: int, seconds: float | None) -> None:
        """A step has ended. `seconds` None: its time says nothing (it changed from one count to another)."""
        if drafted:
            self.meter.record(drafted, accepted)
        if seconds is None:
            return
        self._in_a_row = self._in_a_row + 1 if drafted == self._used else 1
        self._used = drafted
        if self._in_a_row > RECENT and self._in_a_row % OFTEN:
            return
        if self.costs.record(drafted, seconds):
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
        self.best = 0
        for count in range(1, self.limit + 1):
            yield from [count] * LOOK_STEPS
            if self.rate(count) >= HOPELESS * self.rate(0):  # else one less tells enough
                yield count
            self._decide()
            if self.best < count:
                break
        while True:
            yield from self._stay(self._interval)
            if self.best == 0 and self.rate(1) < HOPELESS * self.rate(0):
                yield from self._stay((RARELY - 1) * self._interval)
            yield from self._look()
            changed = self._decide()
            self._interval = FIRST_LOOK if changed else min(2 * self._interval, LAST_LOOK)

    def _stay(self, steps: int) -> Iterator[int]:
        """With the best count, whichever that is by then."""
        for step in range(steps):
            yield self.best
            if self.best and step % 8 == 7:  # while nothing is drafted nothing is learned
                self._decide()

    def _decide(self) -> bool:
        """Take the best count; say whether that is another one."""
        best = max(range(self.limit + 1), key=self.rate)
        margin = MARGIN if best else 1.0  # not drafting is the safe choice
        if best == self.best or self.rate(best) < margin * self.rate(self.best):
            return False
        self.best = best
        return True

    def _look(self) -> Iterator[int]:
        """Freshen what is known of the counts beside the best one, and of not drafting."""
        around = {0, self.best - 1, self.best + 1} - {self.best, -1, self.limit + 1}
        for count in sorted(around):
            yield from [count] * (LOOK_STEPS + (count > 0))

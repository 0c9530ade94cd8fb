"""The draft count's policy, on simulated costs and acceptances."""

from __future__ import annotations

import random

import pytest

from dsv3rt.generate.draft_count import LOOK_STEPS, AutoCount, Costs, FixedCount, Meter


class Simulation:
    """A model with known costs (seconds a step, by drafts) and acceptances (by position)."""

    def __init__(self, costs: list[float], rates: list[float], seed: int = 0) -> None:
        self.costs, self.rates = costs, rates
        self.random = random.Random(seed)

    def accepted(self, drafted: int) -> int:
        for j in range(drafted):
            if self.random.random() >= self.rates[j]:
                return j
        return drafted

    def run(self, auto: AutoCount | FixedCount, tokens: int) -> float:
        """Seconds that many tokens take. Going up costs another draft, and a change is not timed, as in the loop."""
        seconds, settled, before = 0.0, 0, 0
        while settled < tokens:
            count = auto.choose()
            accepted = self.accepted(count)
            cost = self.costs[count] * self.random.uniform(0.9, 1.1)
            seconds += cost + (count > before) * (self.costs[1] - self.costs[0])
            auto.record(count, accepted, None if count != before else cost)
            settled += 1 + accepted
            before = count
        return seconds

    def best(self) -> int:
        def rate(count: int) -> float:
            total = reached = 1.0
            for j in range(count):
                reached *= self.rates[j]
                total += reached
            return total / self.costs[count]

        return max(range(len(self.costs)), key=rate)


@pytest.mark.parametrize(
    ("costs", "rates"),
    [
        ([1.0, 1.3, 1.6, 1.9, 2.2], [0.9, 0.9, 0.9, 0.9]),
        ([1.0, 1.3, 1.6, 1.9, 2.2], [0.85, 0.5, 0.2, 0.1]),
        ([1.0, 2.0, 3.0, 4.0, 5.0], [0.8, 0.6, 0.5, 0.4]),
        ([1.0, 1.1, 1.15, 1.2, 1.25], [0.5, 0.5, 0.5, 0.5]),
    ],
)
def test_it_comes_close_to_the_best_fixed_count(costs: list[float], rates: list[float]) -> None:
    fixed = min(Simulation(costs, rates, seed=1).run(FixedCount(count), 2000) for count in range(5))
    assert Simulation(costs, rates, seed=1).run(AutoCount(4), 2000) < 1.07 * fixed


@pytest.mark.parametrize("slope", [0.2, 0.5, 1.0])
def test_useless_drafts_cost_at_most_a_twentieth(slope: float) -> None:
    costs = [1.0 + slope * count for count in range(5)]
    plain = Simulation(costs, [0.0] * 4).run(FixedCount(0), 400)
    assert Simulation(costs, [0.0] * 4).run(AutoCount(4), 400) < 1.05 * plain


def test_one_look_is_enough_to_see_that_nothing_is_accepted() -> None:
    auto, counts, before = AutoCount(4), [], 0
    for _ in range(100):
        counts.append(count := auto.choose())
        auto.record(count, 0, None if count != before else 1.0 + 0.3 * count)
        before = count
    assert set(counts) == {0, 1} and sum(counts) == LOOK_STEPS + 1


def test_it_follows_when_acceptance_changes() -> None:
    simulation = Simulation([1.0, 1.3, 1.6, 1.9, 2.2], [0.0] * 4)
    auto = AutoCount(4)
    simulation.run(auto, 300)
    assert auto.best == 0
    simulation.rates = [0.95] * 4
    simulation.run(auto, 3000)
    assert auto.best >= 2
    simulation.rates = [0.0] * 4
    simulation.run(auto, 300)
    assert auto.best == 0


def test_it_follows_when_costs_change() -> None:
    """As when compiled graphs take over in mid-conversation."""
    simulation = Simulation([1.0, 5.0, 9.0, 13.0, 17.0], [0.9] * 4)
    auto = AutoCount(4)
    simulation.run(auto, 200)
    assert auto.best == 0
    simulation.costs = [0.1, 0.12, 0.14, 0.16, 0.18]
    simulation.run(auto, 400)
    assert auto.best >= 3


def test_no_drafts_at_all_is_a_limit_too() -> None:
    auto = AutoCount(0)
    assert [auto.choose() for _ in range(5)] == [0] * 5


def test_the_meter_counts_only_what_was_looked_at() -> None:
    meter = Meter()
    for _ in range(200):
        meter.record(drafted=3, accepted=1)
    assert meter.rate(0) > 0.96
    assert meter.rate(1) < 0.11
    assert len(meter.tried) == 2  # the third draft never followed an accepted one
    assert 1.9 < meter.tokens(3) < 2.2


def test_costs_between_measured_ones_are_on_their_line() -> None:
    costs = Costs()
    assert costs.of(1) is None
    costs.record(0, 1.0)
    costs.record(2, 2.0)
    assert costs.of(1) == pytest.approx(1.5)
    assert costs.of(4) == pytest.approx(3.0)


def test_an_interruption_does_not_count_but_a_lasting_change_does() -> None:
    costs = Costs()
    costs.record(0, 50.0)  # the very first, too, may have waited for something
    costs.record(0, 1.0)
    assert costs.of(0) == 1.0
    for seconds in (1.1, 0.9, 30.0, 1.0, 40.0):
        costs.record(0, seconds)
    assert costs.of(0) == 1.1
    for _ in range(9):
        costs.record(0, 2.0)
    assert costs.of(0) == 2.0


def test_steps_that_become_much_quicker_void_what_was_measured() -> None:
    costs = Costs()
    for count in (0, 1, 0):
        assert not costs.record(count, 1.0 + count)
    assert not costs.record(0, 0.1)  # once may be chance
    assert costs.record(0, 0.1)
    assert costs.measured(0) == 0.1 and costs.measured(1) is None


def test_a_look_at_a_busy_moment_is_seen_as_such() -> None:
    costs = Costs()
    for slow in (1.0, 2.0):
        for _ in range(9):
            costs.record(3, slow)
    for _ in range(3):
        costs.record(4, 2.4)
    for _ in range(9):
        costs.record(3, 1.3)
    assert costs.of(3) == pytest.approx(1.3)
    assert costs.of(4) == pytest.approx(1.2 * 1.3)
    costs.record(4, 3.0)  # what was measured before is brought to the present pace: one of four does not move it
    assert costs.of(4) == pytest.approx(1.2 * 1.3)


def test_the_best_count_is_reached_without_waiting_for_looks() -> None:
    simulation = Simulation([1.0, 1.3, 1.6, 1.9, 2.2], [0.95] * 4)
    auto = AutoCount(4)
    simulation.run(auto, 100)
    assert auto.best == 4


def test_hopeless_drafts_are_seldom_looked_at() -> None:
    simulation = Simulation([1.0, 1.6, 2.2, 2.8, 3.4], [0.0] * 4)
    auto = AutoCount(4)
    counts: list[int] = []
    choose = auto.choose
    auto.choose = lambda: counts.append(choose()) or counts[-1]  # type: ignore[method-assign, func-returns-value]
    simulation.run(auto, 2000)
    assert sum(count > 0 for count in counts) <= 12


def test_a_fixed_count_begins_with_what_not_drafting_costs() -> None:
    counter = FixedCount(3, looks=2)
    assert [counter.choose() for _ in range(4)] == [0, 0, 3, 3]

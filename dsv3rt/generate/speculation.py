"""Speculative decoding: draft, verify in one forward pass, accept, rewind. Generic over prediction heads.

Legend: T = 1 + k rows (the newest token and k drafts), V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from collections.abc import Sequence as TokenSequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

from dsv3rt.generate.acceptance import settle
from dsv3rt.generate.draft_count import LOOK_STEPS, AutoCount, Costs, FixedCount, TypicalCosts
from dsv3rt.generate.results import Speculation
from dsv3rt.generate.sampling import Sampler, SamplingParams
from dsv3rt.generate.sequence import Reading, Sequence, outcome
from dsv3rt.generate.steps import Settled
from dsv3rt.interfaces import AcceptsDrafts, DraftRule, Drafts, DraftSession, PredictionHead, PreparesSteps

NO_DRAFTS = Drafts([])


class Counter(Protocol):
    """Says how many tokens to draft."""

    def choose(self) -> int: ...

    def record(self, drafted: int, accepted: int, seconds: float | None) -> None: ...


@dataclass
class Record:
    """What happened during one answer."""

    tried: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    drafted: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, drafted: int, accepted: int, seconds: float) -> None:
        self.tokens += accepted + 1
        self.seconds += seconds
        for j in range(drafted):
            if j == len(self.tried):
                self.tried.append(0)
                self.kept.append(0)
            self.tried[j] += j <= accepted
            self.kept[j] += j < accepted
        self.drafted += drafted

    def result(self, costs: Costs) -> Speculation:
        """The report; `costs` knows what a step without drafts takes."""
        plain = costs.measured(0)
        return Speculation(
            drafted=self.drafted,
            accepted=sum(self.kept),
            per_position=[kept / tried for kept, tried in zip(self.kept, self.tried, strict=True) if tried],
            speedup=self.tokens * plain / self.seconds if plain and self.seconds > 0 else None,
        )


class Speculator:
    """One conversation's drafting: keeps the head's session in step with the tokens of `sequence`."""

    def __init__(self, head: PredictionHead, sequence: Sequence) -> None:
        self.sequence = sequence
        self.max_drafts = head.max_drafts
        self.session: DraftSession = head.start(sequence.capacity, sequence.device, sequence.engine.graph)
        self._accepting = self.session if isinstance(self.session, AcceptsDrafts) else None
        self.costs = Costs()
        self._auto = AutoCount(head.max_drafts, self.costs)
        self._tail: tuple[Tensor, int] | None = None
        """Hidden state of the newest computed row, whose next token is not known yet, and its position."""
        self.record = Record()

    def counter(self, drafts: str | int, *, repeatable: bool) -> Counter:
        """`drafts`: "auto" or how many. `repeatable`: a seed must give the same text again, so no clock decides.

        (How many are drafted does not change the distribution, but which text is drawn from it.)
        """
        if drafts != "auto":
            known = repeatable or self.costs.measured(0) is not None
            return FixedCount(min(int(drafts), self.max_drafts), 0 if known else LOOK_STEPS)
        if repeatable:
            return AutoCount(self.max_drafts, TypicalCosts())
        return self._auto

    def result(self) -> Speculation:
        """How drafting went in the newest answer."""
        return self.record.result(self.costs)

    def prepare(self, params: SamplingParams) -> None:
        """Have compiled what answers by `params` will use."""
        if params.repetition_penalty == 1 and isinstance(self.session, PreparesSteps):
            self.session.prepare(_rule(params))

    def reuse(self, token_ids: TokenSequence[int]) -> int:
        """As `Sequence.reuse`, keeping so much less that the head can observe every row that depends on a change."""
        self.sequence.reuse(token_ids, lookback=self.session.lookback)
        # answers given without drafting were not observed: what the head has missed is run again
        self.sequence.rewind(min(self.sequence.computed, self.session.observed))
        return self.sequence.computed

    def read(self, token_ids: TokenSequence[int]) -> Tensor:
        """As `reading`, at one go."""
        return outcome(self.reading(token_ids))

    def reading(self, token_ids: TokenSequence[int]) -> Reading[Tensor]:
        """Run the rest of a prompt: logits [V] after its last token."""
        self.record = Record()
        ids = [*self.sequence.token_ids[self.sequence.computed :], *token_ids]
        start = self.sequence.computed

        def seen(position: int, hidden_TD: Tensor) -> None:
            after = ids[position + 1 - start : position + 1 - start + len(hidden_TD)]
            if after:
                self.session.observe(after, hidden_TD, position)
            if len(after) < len(hidden_TD):
                self._tail = hidden_TD[-1:], position + len(after)

        logits, _ = yield from self.sequence.reading(token_ids, seen=seen)
        return logits[-1]

    def steps(self, logits_V: Tensor, sampler: Sampler, counter: Counter) -> Iterator[list[Settled]]:
        """Settled tokens, step by step, for ever; the consumer stops asking. `logits_V`: what `read` returned."""
        sequence, session = self.sequence, self.session
        params = sampler.params
        rule = replace(_rule(params), uniforms=sampler.uniforms)
        newest = sampler.next_token(logits_V, sequence.token_ids)
        assert self._tail is not None
        session.observe([newest], self._tail[0], self._tail[1])
        wanted = min(counter.choose(), self._room())
        drafts = session.draft(wanted, rule) if wanted else NO_DRAFTS
        yield [Settled(newest, logits_V[None], 0)]
        while True:
            started = time.perf_counter()
            if wanted := counter.choose():
                wanted = min(wanted, self._room())
            if not (wanted or drafts.token_ids):  # little more than `plain_steps`: where no draft pays, all are
                logits_TV, hidden_TD = sequence.extend([newest])
                newest = sampler.next_token(logits_TV[0], sequence.token_ids)
                session.observe([newest], hidden_TD, sequence.computed - 1)
                self._note(counter, 0, 0, time.perf_counter() - started, True)
                yield [Settled(newest, logits_TV, 0)]
                continue
            room = max(0, sequence.capacity - sequence.computed - 1)
            if room < len(drafts.token_ids):
                drafts = _cut(drafts, room)
            drafted = len(drafts.token_ids)
            settled, following, logits_TV = self._step(newest, drafts, wanted, sampler, rule)
            steady = drafted == wanted == len(following.token_ids)
            self._note(counter, drafted, len(settled) - 1, time.perf_counter() - started, steady)
            newest, drafts = settled[-1], following
            yield [Settled(token, logits_TV, i) for i, token in enumerate(settled)]

    def _note(self, counter: Counter, drafted: int, accepted: int, seconds: float, steady: bool) -> None:
        """A step has ended. `steady`: as many are drafted for the next one, so that its time is that of a count."""
        self.record.add(drafted, accepted, seconds)
        if steady and counter is not self._auto:  # which notes them itself
            self.costs.record(drafted, seconds)
        counter.record(drafted, accepted, seconds if steady else None)

    def _room(self) -> int:
        """How many tokens may be drafted so that all of them still fit the context."""
        return max(0, self.sequence.capacity - len(self.sequence.token_ids) - 2)

    def _step(
        self, newest: int, drafts: Drafts, wanted: int, sampler: Sampler, rule: DraftRule
    ) -> tuple[list[int], Drafts, Tensor]:
        """Verify, accept, observe and draft again: (settled tokens, `wanted` drafts, logits [T, V])."""
        sequence, session, start = self.sequence, self.session, self.sequence.computed
        penalised = sampler.params.repetition_penalty != 1
        logits_TV, hidden_TD = sequence.extend([newest, *drafts.token_ids], last=None)
        if wanted and not penalised and self._accepting is not None:
            accepted = self._accepting.accept(drafts, logits_TV, hidden_TD, start, wanted, rule)
            if accepted is not None:
                sequence.rewind(start + len(accepted.settled))
                return list(accepted.settled), accepted.drafts, logits_TV
        settled = settle(sampler, logits_TV, drafts, sequence.token_ids[: start + 1] if penalised else ())
        sequence.rewind(start + len(settled))
        session.observe(settled, hidden_TD, start)
        return settled, session.draft(wanted, rule) if wanted else NO_DRAFTS, logits_TV


def _rule(params: SamplingParams) -> DraftRule:
    return DraftRule(0.0 if params.greedy else params.temperature, params.top_k, params.top_p, params.min_p)


def _cut(drafts: Drafts, count: int) -> Drafts:
    candidates = drafts.candidates
    return Drafts(
        drafts.token_ids[:count], None if candidates is None else (candidates[0][:count], candidates[1][:count])
    )

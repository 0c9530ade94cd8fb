"""The draft, verify, accept, rewind loop over any head: same tokens when greedy, same distribution when drawn."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from markov import MarkovEngine, MarkovHead, speculator

from dsv3rt.generate.acceptance import settle
from dsv3rt.generate.draft_count import FixedCount
from dsv3rt.generate.sampling import Sampler, SamplingParams
from dsv3rt.generate.sequence import Sequence
from dsv3rt.generate.speculation import Speculator
from dsv3rt.generate.steps import plain_steps
from dsv3rt.interfaces import Drafts
from dsv3rt.testing import chi_square

VOCAB = 12


def blurred(table_VV: torch.Tensor, amount: float, seed: int = 1) -> torch.Tensor:
    """A head's table that agrees with the model's now and then."""
    return table_VV + amount * torch.randn(table_VV.shape, generator=torch.Generator().manual_seed(seed))


def plain(engine: MarkovEngine, prompt: list[int], params: SamplingParams, count: int) -> list[int]:
    sequence = Sequence(engine, 4096, torch.device("cpu"))  # type: ignore[arg-type]
    logits, _ = sequence.extend(prompt)
    steps = plain_steps(sequence, logits[-1], Sampler(params))
    return [step[0].token_id for step in itertools.islice(steps, count)]


def drafted(speculator: Speculator, prompt: list[int], params: SamplingParams, count: int, drafts: int) -> list[int]:
    cached = speculator.reuse(prompt)
    steps = speculator.steps(speculator.read(prompt[cached:]), Sampler(params), FixedCount(drafts))
    tokens: list[int] = []
    while len(tokens) < count:
        tokens.extend(settled.token_id for settled in next(steps))
    return tokens[:count]


@pytest.mark.parametrize("flaws", [False, True])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("drafts", [0, 1, 2, 4])
def test_greedy_is_the_same_text(drafts: int, penalty: float, flaws: bool) -> None:
    engine = MarkovEngine(VOCAB)
    params = SamplingParams(temperature=0, repetition_penalty=penalty)
    head = MarkovHead(blurred(engine.table_VV, 1.0), flaws=flaws)
    for prompt in ([1, 2, 3], [4], [7, 7, 7, 7, 0]):
        spec = speculator(engine, head)
        assert drafted(spec, prompt, params, 60, drafts) == plain(engine, prompt, params, 60)


def test_what_is_rejected_leaves_no_trace() -> None:
    engine = MarkovEngine(VOCAB)
    spec = speculator(engine, MarkovHead(blurred(engine.table_VV, 2.0)))
    prompt = [3, 1, 4, 1, 5]
    tokens = drafted(spec, prompt, SamplingParams(temperature=0), 50, 4)
    sequence = spec.sequence
    assert 0 < spec.record.result(spec.costs).acceptance < 1
    assert sequence.computed == len(sequence.token_ids)
    known = [*prompt, *tokens][: sequence.computed]
    assert sequence.token_ids[: len(known)] == known
    assert sequence.caches[0][0][0, : len(known)].tolist() == known
    assert spec.session.observed == sequence.computed


def test_another_prompt_keeps_what_both_share() -> None:
    engine = MarkovEngine(VOCAB)
    spec = speculator(engine, MarkovHead(blurred(engine.table_VV, 1.0)))
    params = SamplingParams(temperature=0)
    first = [1, 2, 3, 4, 5, 6, 7, 8]
    answer = drafted(spec, first, params, 9, 3)
    for prompt in ([*first, *answer, 2, 2], [1, 2, 3, 9, 9], [5], [5, 1], [5]):
        engine.tokens_run = 0
        cached = spec.reuse(prompt)
        shared = next(
            (i for i, (a, b) in enumerate(zip(spec.sequence.token_ids, prompt, strict=False)) if a != b), None
        )
        assert shared is None and cached < len(prompt)
        assert drafted(spec, prompt, params, 30, 3) == plain(engine, prompt, params, 30)


def test_answers_without_drafts_are_caught_up_with() -> None:
    engine = MarkovEngine(VOCAB)
    spec = speculator(engine, MarkovHead(engine.table_VV))
    spec.sequence.extend([1, 2, 3, 4, 5])  # the session has seen none of this
    assert spec.reuse([1, 2, 3, 4, 5, 6]) == 0
    prompt = [1, 2, 3, 4, 5, 6]
    params = SamplingParams(temperature=0)
    assert drafted(spec, prompt, params, 20, 2) == plain(engine, prompt, params, 20)


def test_a_full_context_is_used_to_its_last_token() -> None:
    engine = MarkovEngine(VOCAB)
    prompt = [1, 2, 3]
    for capacity in range(8, 14):
        spec = speculator(engine, MarkovHead(engine.table_VV), capacity)
        params = SamplingParams(temperature=0)
        assert drafted(spec, prompt, params, capacity - 3, 4) == plain(engine, prompt, params, capacity - 3)


SETTINGS = [
    SamplingParams(temperature=1.0, top_p=1.0),
    SamplingParams(temperature=0.7, top_p=0.8),
    SamplingParams(temperature=1.5, top_p=1.0, top_k=5),
    SamplingParams(temperature=1.2, top_p=1.0, min_p=0.1),
    SamplingParams(temperature=0.9, top_p=0.9, repetition_penalty=1.5),
]


@pytest.mark.parametrize("certain", [False, True])
@pytest.mark.parametrize("params", SETTINGS, ids=range(len(SETTINGS)))
def test_drawn_text_has_the_distribution_of_plain_sampling(params: SamplingParams, certain: bool) -> None:
    """Three tokens in a row from 1,500 answers against their exact probabilities."""
    vocab, prompt, answers = 6, [2, 0], 1500
    engine = MarkovEngine(vocab, seed=3, spread=1.0)
    head = MarkovHead(blurred(engine.table_VV, 0.8), certain=certain)
    spec = speculator(engine, head)
    sampler = Sampler(params)
    expected: dict[tuple[int, ...], float] = {}
    for outcome in itertools.product(range(vocab), repeat=3):
        probability, history = 1.0, list(prompt)
        for token in outcome:
            probability *= float(sampler.probabilities(engine.table_VV[history[-1]], history)[token])
            history.append(token)
        expected[outcome] = probability
    counts: Counter[tuple[int, ...]] = Counter()
    seeded = Sampler(SamplingParams(**{**vars(params), "seed": 11}))
    for _ in range(answers):
        cached = spec.reuse(prompt)
        steps = spec.steps(spec.read(prompt[cached:]), seeded, FixedCount(2))
        tokens: list[int] = []
        while len(tokens) < 3:
            tokens.extend(settled.token_id for settled in next(steps))
        counts[tuple(tokens[:3])] += 1
    statistic, freedom = chi_square(counts, expected)
    # five standard deviations above the mean of a chi-square variable
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


def test_the_statistic_notices_a_bias() -> None:
    """Were every draft accepted, the test above would fail: it can."""
    engine = MarkovEngine(6, seed=3, spread=1.0)
    head_VV = blurred(engine.table_VV, 0.8)
    wrong = torch.softmax(head_VV[0], -1)
    right = {(token,): float(p) for token, p in enumerate(torch.softmax(engine.table_VV[0], -1))}
    draws = torch.multinomial(wrong, 1500, replacement=True, generator=torch.Generator().manual_seed(0)).tolist()
    statistic, freedom = chi_square(Counter((token,) for token in draws), right)
    assert statistic > freedom + 5 * (2 * freedom) ** 0.5


def test_a_perfect_head_is_always_believed() -> None:
    engine = MarkovEngine(VOCAB)
    spec = speculator(engine, MarkovHead(engine.table_VV))
    drafted(spec, [1, 2], SamplingParams(temperature=1.0, top_p=1.0, seed=1), 100, 3)
    result = spec.result()
    assert result.drafted == result.accepted > 50 and result.per_position == [1.0, 1.0, 1.0]


def test_a_draft_outside_the_models_candidates_is_rejected() -> None:
    logits_TV = torch.tensor([[5.0, 4.0, -9.0], [0.0, 0.0, 9.0]])
    sampler = Sampler(SamplingParams(temperature=1.0, top_p=1.0, top_k=2, seed=0))
    for _ in range(50):
        settled = settle(sampler, logits_TV, Drafts([2]), ())
        assert len(settled) == 1 and settled[0] in (0, 1)


def test_a_seed_means_a_text_however_long_steps_take() -> None:
    engine = MarkovEngine(VOCAB)
    head = MarkovHead(blurred(engine.table_VV, 1.0))
    texts = []
    for slow in (0.0, 0.02):
        spec = speculator(engine, head)
        spec.costs.record(0, 0.001)
        spec.costs.record(1, 0.001 + slow)
        sampler = Sampler(SamplingParams(temperature=1.0, top_p=1.0, seed=5))
        steps = spec.steps(spec.read([1, 2]), sampler, spec.counter("auto", repeatable=True))
        texts.append([settled.token_id for step in itertools.islice(steps, 80) for settled in step])
    assert texts[0] == texts[1]

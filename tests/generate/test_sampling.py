"""Sampling against transformers' logits processors, and the properties speculation leans on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dsv3rt.errors import UsageError, UserError
from dsv3rt.generate.sampling import Sampler, SamplingParams, token_logprobs


def reference(params: SamplingParams, logits_V: torch.Tensor, history: list[int]) -> torch.Tensor:
    steps = LogitsProcessorList()
    if params.repetition_penalty != 1 and history:
        steps.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    steps.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        steps.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        steps.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        steps.append(MinPLogitsWarper(params.min_p))
    scores = steps(torch.tensor([history], dtype=torch.int64), logits_V[None].double())
    return torch.softmax(scores, dim=-1)[0]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    vocab=st.sampled_from([3, 50, 3000, 12_000]),
    spread=st.sampled_from([0.5, 3.0, 6.0]),
    temperature=st.sampled_from([0.3, 0.6, 1.0, 1.7]),
    top_k=st.sampled_from([0, 2, 5, 40, 100_000]),
    top_p=st.sampled_from([0.05, 0.5, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.9]),
    penalty=st.sampled_from([0.8, 1.0, 1.3]),
)
def test_distribution_equals_the_reference(
    seed: int,
    vocab: int,
    spread: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    penalty: float,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_V = torch.randn(vocab, generator=generator) * spread
    history = torch.randint(vocab, (20,), generator=generator).tolist()
    params = SamplingParams(temperature, top_k, top_p, min_p, penalty)
    ours_V = Sampler(params).probabilities(logits_V, history)
    theirs_V = reference(params, logits_V, history)
    # A token whose cumulated mass is top_p to the last bit may fall either way: it is then the least likely of the kept
    # ones, and the others differ by its mass at most.
    differing = (ours_V > 1e-12) != (theirs_V > 1e-12)
    assert int(differing.sum()) <= 1
    slack = 1e-5 + float(torch.maximum(ours_V, theirs_V)[differing].sum())
    assert float((ours_V - theirs_V).abs().max()) <= slack
    assert not differing.any() or top_p < 1 or min_p > 0
    assert abs(float(ours_V.sum()) - 1) < 1e-5


def test_ties_with_the_kth_stay() -> None:
    probs_V = Sampler(SamplingParams(temperature=1, top_k=2, top_p=1)).probabilities(torch.tensor([2.0, 1.0, 1.0, 0.0]))
    assert (probs_V > 0).tolist() == [True, True, True, False]


@pytest.mark.parametrize("levels", [1, 2, 40, 5000, 0])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_flat_distributions_and_ties(levels: int, top_p: float) -> None:
    """Thousands of tokens in the nucleus, many of them equal: its size is still the smallest that reaches top_p."""
    generator = torch.Generator().manual_seed(levels)
    noise_V = torch.rand(6000, generator=generator)
    logits_V = (noise_V * levels).floor() / levels if levels else noise_V
    kept_V = Sampler(SamplingParams(temperature=1, top_p=top_p)).probabilities(logits_V) > 0
    exact_V = torch.softmax(logits_V.double(), 0)
    mass = float(exact_V[kept_V].sum())
    assert mass >= top_p - 1e-6
    assert mass - float(exact_V[kept_V].min()) < top_p + 1e-6
    assert float(exact_V[kept_V].min()) >= float(exact_V[~kept_V].max()) - 1e-12


def test_greedy_takes_the_lowest_of_equals() -> None:
    logits_V = torch.full((1000,), -3.0)
    logits_V[[17, 400, 999]] = 5.0
    sampler = Sampler(SamplingParams(temperature=0))
    assert sampler.sample(logits_V) == (17, None)
    assert sampler.probabilities(logits_V).nonzero()[:, 0].tolist() == [17]


def test_greedy_honours_the_repetition_penalty() -> None:
    sampler = Sampler(SamplingParams(temperature=0, repetition_penalty=2.0))
    assert sampler.next_token(torch.tensor([3.0, 2.0, -1.0]), [0]) == 1
    assert sampler.next_token(torch.tensor([-3.0, -2.0, -1.9]), [2]) == 1


def test_same_seed_same_tokens_and_the_two_ways_agree() -> None:
    logits_TV = torch.randn(40, 5000, generator=torch.Generator().manual_seed(1)) * 2
    for params in (
        SamplingParams(temperature=1.0, top_p=0.9, seed=5),
        SamplingParams(temperature=0.7, top_k=30, top_p=1.0, seed=5),
        SamplingParams(temperature=1.0, top_p=1.0, seed=5),
    ):
        first, second, third = Sampler(params), Sampler(params), Sampler(params)
        tokens = [first.next_token(row_V) for row_V in logits_TV]
        assert tokens == [second.next_token(row_V) for row_V in logits_TV]
        assert tokens == [third.sample(row_V)[0] for row_V in logits_TV]
        other = Sampler(params.override(seed=6))
        assert tokens != [other.next_token(row_V) for row_V in logits_TV]


def test_draws_follow_the_distribution() -> None:
    logits_V = torch.tensor([1.0, 0.0, -1.0, 2.0, -5.0])
    sampler = Sampler(SamplingParams(temperature=1, top_p=1, seed=3))
    expected_V = torch.softmax(logits_V, 0)
    draws = torch.tensor([sampler.next_token(logits_V) for _ in range(4000)])
    counts_V = torch.bincount(draws, minlength=5)
    chi_square = float(((counts_V - 4000 * expected_V) ** 2 / (4000 * expected_V)).sum())
    assert chi_square < 18.5  # 4 degrees of freedom, p = 0.001; the seed is fixed


def test_draw_never_returns_what_has_no_weight() -> None:
    sampler = Sampler(SamplingParams(seed=0))
    weights = torch.tensor([0.0, 0.3, 0.0, 0.7, 0.0])
    assert {sampler.draw(weights) for _ in range(500)} == {1, 3}


def test_a_fresh_seed_is_told() -> None:
    first = Sampler(SamplingParams(temperature=1))
    again = Sampler(SamplingParams(temperature=1, seed=first.seed))
    logits_V = torch.randn(500)
    assert [first.next_token(logits_V) for _ in range(20)] == [again.next_token(logits_V) for _ in range(20)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("where", [[1], [0, 1, 2]])
def test_not_a_number_is_refused(temperature: float, where: list[int]) -> None:
    logits_V = torch.tensor([0.0, 1.0, 2.0])
    logits_V[where] = float("nan")
    with pytest.raises(UserError, match="not a number"):
        Sampler(SamplingParams(temperature=temperature)).next_token(logits_V)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"min_p": -0.01},
        {"repetition_penalty": 0.0},
        {"seed": -1},
        {"sede": 1},
    ],
)
def test_values_out_of_range_are_usage_errors(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        SamplingParams().override(**wrong)


def test_generation_config() -> None:
    read = SamplingParams.from_generation_config
    assert read({}) == SamplingParams()
    assert read({"eos_token_id": 1, "transformers_version": "4"}) == SamplingParams()
    assert read({"do_sample": True, "temperature": 0.6, "top_p": 0.95}) == SamplingParams(0.6, 0, 0.95)
    assert read({"temperature": 1.0}) == SamplingParams(1.0, 0, 1.0)
    assert read({"do_sample": False}).greedy
    with pytest.raises(UsageError, match="generation_config"):
        read({"temperature": "warm"})
    assert read({"temperature": 0.3}).override(temperature=None, top_k=4) == SamplingParams(0.3, 4, 1.0)


def test_logprobs_are_those_of_the_model() -> None:
    logits_V = torch.randn(300, generator=torch.Generator().manual_seed(0)) * 4
    exact_V = torch.log_softmax(logits_V.double(), 0)
    found = token_logprobs(logits_V, 7, 5)
    assert found.token_id == 7
    assert found.logprob == pytest.approx(float(exact_V[7]), abs=1e-5)
    assert [token for token, _ in found.top] == exact_V.topk(5).indices.tolist()
    assert [value for _, value in found.top] == pytest.approx(exact_V.topk(5).values.tolist(), abs=1e-5)
    assert token_logprobs(logits_V, 7, 0).top == ()

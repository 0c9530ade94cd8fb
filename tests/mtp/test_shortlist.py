"""The distribution sampled drafts are drawn from."""

from __future__ import annotations

import pytest
import torch
from dsv3rt_mtp.graphs import CANDIDATES, draw, shortlist

from dsv3rt.generate.sampling import Sampler, SamplingParams


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0, top_p=1.0),
        SamplingParams(temperature=0.3, top_p=0.9),
        SamplingParams(temperature=2.0, top_p=1.0, top_k=3),
        SamplingParams(temperature=1.0, top_p=1.0, min_p=0.2),
    ],
    ids=["plain", "top-p", "top-k", "min-p"],
)
def test_it_is_the_samplers_own_where_the_vocabulary_is_small(params: SamplingParams) -> None:
    logits_BV = 2 * torch.randn(1, 40, generator=torch.Generator().manual_seed(4))
    rule_4 = torch.tensor([params.temperature, float(params.top_k), params.top_p, params.min_p])
    ids_BC, probs_BC, whole_B = shortlist(logits_BV, rule_4)
    assert whole_B.all()
    found = torch.zeros(40).scatter_(0, ids_BC[0], probs_BC[0])
    torch.testing.assert_close(found, Sampler(params).probabilities(logits_BV[0]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("spread", [1.0, 4.0, 8.0])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0, top_p=1.0),
        SamplingParams(temperature=1.0, top_p=0.9),
        SamplingParams(temperature=0.6, top_p=0.95, top_k=20),
        SamplingParams(temperature=1.0, top_p=1.0, top_k=70),
        SamplingParams(temperature=1.0, top_p=1.0, min_p=0.05),
    ],
    ids=["plain", "top-p", "top-k and top-p", "top-k above", "min-p"],
)
def test_it_says_when_it_is_not_the_samplers_own(params: SamplingParams, spread: float) -> None:
    logits_BV = spread * torch.randn(8, 700, generator=torch.Generator().manual_seed(4))
    rule_4 = torch.tensor([params.temperature, float(params.top_k), params.top_p, params.min_p])
    ids_BC, probs_BC, whole_B = shortlist(logits_BV, rule_4)
    for row, whole in enumerate(whole_B.tolist()):
        expected_V = Sampler(params).probabilities(logits_BV[row])
        assert whole == (int((expected_V > 0).sum()) < CANDIDATES)
        if whole:
            found = torch.zeros(700).scatter_(0, ids_BC[row], probs_BC[row])
            torch.testing.assert_close(found, expected_V, rtol=1e-4, atol=1e-6)


def test_ties_with_the_last_of_top_k_all_stay() -> None:
    logits_BV = torch.zeros(1, 200)
    logits_BV[0, :3] = torch.tensor([3.0, 2.0, 1.0])
    _, probs_BC, whole_B = shortlist(logits_BV, torch.tensor([1.0, 2.0, 1.0, 0.0]))
    assert whole_B.tolist() == [True] and int((probs_BC > 0).sum()) == 2
    _, _, whole_B = shortlist(logits_BV, torch.tensor([1.0, 4.0, 1.0, 0.0]))  # 197 tokens are the fourth
    assert whole_B.tolist() == [False]


def test_a_draw_hits_what_has_weight() -> None:
    weights_BC = torch.tensor([[0.25, 0.0, 0.75, 0.0]])
    numbers = (0.0, 0.2499, 0.25, 0.9999999999999999)
    assert [int(draw(weights_BC, torch.tensor(u, dtype=torch.float64))) for u in numbers] == [0, 0, 2, 2]


def test_a_large_vocabulary_is_cut() -> None:
    ids_BC, probs_BC, _ = shortlist(torch.randn(2, 5000), torch.tensor([1.0, 0.0, 1.0, 0.0]))
    assert ids_BC.shape == probs_BC.shape == (2, CANDIDATES)
    torch.testing.assert_close(probs_BC.sum(-1), torch.ones(2))

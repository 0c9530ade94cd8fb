"""The distribution sampled drafts are drawn from."""

from __future__ import annotations

import pytest
import torch
from dsv3rt_mtp.graphs import CANDIDATES, shortlist

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
    rule_4 = torch.tensor([params.temperature, float(params.top_k or CANDIDATES), params.top_p, params.min_p])
    ids_BC, probs_BC = shortlist(logits_BV, rule_4)
    found = torch.zeros(40).scatter_(0, ids_BC[0], probs_BC[0])
    torch.testing.assert_close(found, Sampler(params).probabilities(logits_BV[0]), rtol=1e-4, atol=1e-6)


def test_a_large_vocabulary_is_cut() -> None:
    ids_BC, probs_BC = shortlist(torch.randn(2, 5000), torch.tensor([1.0, CANDIDATES, 1.0, 0.0]))
    assert ids_BC.shape == probs_BC.shape == (2, CANDIDATES)
    torch.testing.assert_close(probs_BC.sum(-1), torch.ones(2))

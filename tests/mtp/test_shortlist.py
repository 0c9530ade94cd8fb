"""The distribution sampled drafts are drawn from."""

from __future__ import annotations

import pytest
import torch
from dsv3rt_mtp.graphs import CANDIDATES

from dsv3rt import native
from dsv3rt.generate.sampling import Sampler, SamplingParams
from dsv3rt.native.drafts import _plain_settle, draw, shortlist
from dsv3rt.native.loader import NativeLibrary


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
    ids_BC, probs_BC, whole_B = shortlist(logits_BV, rule_4, min(CANDIDATES, logits_BV.shape[1]))
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
    ids_BC, probs_BC, whole_B = shortlist(logits_BV, rule_4, min(CANDIDATES, logits_BV.shape[1]))
    for row, whole in enumerate(whole_B.tolist()):
        expected_V = Sampler(params).probabilities(logits_BV[row])
        assert whole == (int((expected_V > 0).sum()) < CANDIDATES)
        if whole:
            found = torch.zeros(700).scatter_(0, ids_BC[row], probs_BC[row])
            torch.testing.assert_close(found, expected_V, rtol=1e-4, atol=1e-6)


def test_ties_with_the_last_of_top_k_all_stay() -> None:
    logits_BV = torch.zeros(1, 200)
    logits_BV[0, :3] = torch.tensor([3.0, 2.0, 1.0])
    _, probs_BC, whole_B = shortlist(logits_BV, torch.tensor([1.0, 2.0, 1.0, 0.0]), CANDIDATES)
    assert whole_B.tolist() == [True] and int((probs_BC > 0).sum()) == 2
    _, _, whole_B = shortlist(logits_BV, torch.tensor([1.0, 4.0, 1.0, 0.0]), CANDIDATES)  # 197 tokens are the fourth
    assert whole_B.tolist() == [False]


def test_a_draw_hits_what_has_weight() -> None:
    weights_BC = torch.tensor([[0.25, 0.0, 0.75, 0.0]])
    numbers = (0.0, 0.2499, 0.25, 0.9999999999999999)
    assert [int(draw(weights_BC, torch.tensor(u, dtype=torch.float64))) for u in numbers] == [0, 0, 2, 2]


def test_a_large_vocabulary_is_cut() -> None:
    ids_BC, probs_BC, _ = shortlist(torch.randn(2, 5000), torch.tensor([1.0, 0.0, 1.0, 0.0]), CANDIDATES)
    assert ids_BC.shape == probs_BC.shape == (2, CANDIDATES)
    torch.testing.assert_close(probs_BC.sum(-1), torch.ones(2))


RULES = {
    "plain": [1.0, 0.0, 1.0, 0.0],
    "top-p": [0.6, 0.0, 0.95, 0.0],
    "most of a flat distribution": [3.0, 0.0, 0.9, 0.0],
    "top-k and top-p": [0.8, 20.0, 0.9, 0.0],
    "top-k above": [0.8, 70.0, 1.0, 0.0],
    "min-p": [1.2, 0.0, 1.0, 0.1],
}


@pytest.fixture
def library() -> NativeLibrary | None:
    """Whose instruction sets `variant` goes through."""
    return native.core_library()


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("vocabulary", [40, 700, 2048])
def test_the_operators_draw_and_settle_as_torch_does(rule: list[float], vocabulary: int) -> None:
    candidates, rule_4 = min(CANDIDATES, vocabulary), torch.tensor(rule)
    numbers = torch.Generator().manual_seed(vocabulary)
    uniforms = lambda count: torch.rand(count, generator=numbers, dtype=torch.float64)  # noqa: E731
    for spread in (0.5, 3.0):
        for _ in range(30):
            logits_TV = spread * torch.randn(4, vocabulary, generator=numbers)
            by_1 = uniforms(1)
            near_TV = logits_TV + torch.randn(4, vocabulary, generator=numbers)
            found = native.draw_draft(near_TV, rule_4, by_1, candidates)
            ids_TC, probs_TC, _ = shortlist(near_TV, rule_4, candidates)
            assert torch.equal(found[1], ids_TC)
            torch.testing.assert_close(found[2], probs_TC, rtol=1e-4, atol=1e-6)
            assert torch.equal(found[0], ids_TC.gather(1, draw(probs_TC, by_1))[:, 0])
            drafts_T = torch.cat([found[0][:3], torch.tensor([-1])])
            ids_TC, probs_TC = found[1].clone(), found[2].clone()
            ids_TC[-1], probs_TC[-1] = 0, 0.0
            args = drafts_T, logits_TV, ids_TC, probs_TC, rule_4, uniforms(4)
            for mine, expected in zip(native.settle_drafts(*args), _plain_settle(*args), strict=True):
                assert torch.equal(mine, expected)


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_a_number_is_not_settled(value: float) -> None:
    logits_TV = torch.full((2, 100), value)
    none = torch.zeros(2, CANDIDATES, dtype=torch.int64), torch.zeros(2, CANDIDATES)
    rule_4, uniform_T = torch.tensor(RULES["top-p"]), torch.rand(2, dtype=torch.float64)
    *_, fine_1 = native.settle_drafts(torch.tensor([5, -1]), logits_TV, *none, rule_4, uniform_T)
    assert int(fine_1) == 0


def test_arguments_that_do_not_fit_are_refused() -> None:
    if native.core_library() is None:
        pytest.skip("no compiler")
    logits_TV, rule_4, uniform_1 = torch.randn(2, 100), torch.tensor(RULES["plain"]), torch.rand(1, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="as large as k"):
        native.draw_draft(logits_TV, rule_4, uniform_1, 101)
    with pytest.raises(RuntimeError, match="float64"):
        native.draw_draft(logits_TV, rule_4, uniform_1.float(), 10)
    with pytest.raises(RuntimeError, match="do not fit"):
        native.settle_drafts(
            torch.tensor([5, -1]), logits_TV, torch.zeros(1, 64).long(), torch.zeros(1, 64), rule_4, uniform_1
        )

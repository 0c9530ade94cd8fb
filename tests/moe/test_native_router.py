"""The native router against the same in torch, and what speculation relies on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from dsv3rt_moe import native
from dsv3rt_moe.routers import BiasTopK, SoftmaxGroupTopK, SoftmaxTopK, _TopK
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3rt.config import ModelConfig
from dsv3rt.interfaces import Site
from dsv3rt.native.loader import NativeLibrary
from dsv3rt.testing.contracts import SMALL

pytestmark = pytest.mark.skipif(native.library() is None, reason="no compiler")
KINDS = {"bias": BiasTopK, "softmax": SoftmaxTopK, "groups": SoftmaxGroupTopK}


@pytest.fixture
def library() -> NativeLibrary | None:
    """Whose instruction sets `variant` goes through."""
    return native.library()


def make(kind: str, config: ModelConfig, seed: int = 0) -> _TopK:
    random = torch.Generator().manual_seed(seed)
    placeholder = None
    site = Site(config, 1, "", placeholder, torch.float32, torch.float32, torch.device("cpu"))  # type: ignore[arg-type]
    router = KINDS[kind](site)
    router.weight.data = torch.randn(router.weight.shape, generator=random) * config.hidden_size**-0.5
    if isinstance(router, BiasTopK):
        router.e_score_correction_bias = torch.randn(config.n_routed_experts, generator=random) * 0.3
    return router.requires_grad_(False)


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    hidden=st.integers(1, 130),
    groups=st.integers(1, 6),
    size=st.integers(1, 9),
    tokens=st.integers(1, 16),
    renormalise=st.booleans(),
    sigmoid=st.booleans(),
    data=st.data(),
)
def test_matches_torch(
    kind: str, hidden: int, groups: int, size: int, tokens: int, renormalise: bool, sigmoid: bool, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, groups))
    config = replace(
        SMALL,
        hidden_size=hidden,
        n_routed_experts=groups * size,
        n_group=groups,
        topk_group=keep,
        num_experts_per_tok=data.draw(st.integers(1, keep * size)),
        norm_topk_prob=renormalise,
        scoring_func="sigmoid" if sigmoid else "softmax",
    )
    router = make(kind, config)
    x_ND = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 9))))
    weights_NK, ids_NK = router(x_ND)
    expected_weights, expected_ids = router.plain(x_ND)
    assert torch.equal(ids_NK.sort(-1).values, expected_ids.sort(-1).values)
    mine, theirs = (
        torch.zeros(tokens, groups * size).scatter(1, ids, weights)
        for ids, weights in ((ids_NK, weights_NK), (expected_ids, expected_weights))
    )
    torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_token_does_not_depend_on_the_others(variant: str, kind: str) -> None:
    router = make(kind, replace(SMALL, hidden_size=77, n_routed_experts=36, n_group=4, topk_group=2))
    x_ND = torch.randn(16, 77)
    alone = [router(x_ND[n : n + 1]) for n in range(16)]
    for count in range(1, 17):
        weights_NK, ids_NK = router(x_ND[:count])
        assert torch.equal(weights_NK, torch.cat([w for w, _ in alone[:count]]))
        assert torch.equal(ids_NK, torch.cat([i for _, i in alone[:count]]))


def test_broken_hidden_states_still_choose_different_experts(variant: str) -> None:
    router = make("bias", SMALL)
    _, ids_NK = router(torch.full((2, SMALL.hidden_size), float("nan")))
    for ids_K in ids_NK.tolist():
        assert len(set(ids_K)) == SMALL.num_experts_per_tok
        assert all(0 <= expert < SMALL.n_routed_experts for expert in ids_K)


def test_compiles_into_one_graph() -> None:
    router = make("bias", SMALL)
    compiled = torch.compile(router, fullgraph=True)
    x_ND = torch.randn(3, SMALL.hidden_size)
    for mine, theirs in zip(compiled(x_ND), router(x_ND), strict=True):
        assert torch.equal(mine, theirs)


def test_training_takes_the_plain_path() -> None:
    router = make("bias", SMALL)
    router.weight.requires_grad_(True)
    weights_NK, _ = router(torch.randn(3, SMALL.hidden_size))
    weights_NK.sum().backward()
    assert router.weight.grad is not None

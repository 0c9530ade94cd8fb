"""Prefill as one operator: against float64, against single steps, chunked, compiled, and within bounded memory."""

from __future__ import annotations

import pytest
import torch
from dsv3rt_mla import blockwise, native
from mla_cases import CACHES, E4M3, ODD, SMALL, Case, make_case
from torch import Tensor

from dsv3rt.interfaces import Cache


def run(case: Case, cache: Cache, first: int, last: int) -> Tensor:
    span = slice(first, last)
    positions = torch.arange(first, last)[None]
    return case.attend(blockwise.attend, case.q_TX[None, span], case.kv_TA[None, span], positions, cache)[0]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a short prompt has several blocks, and several groups of heads."""
    monkeypatch.setattr(blockwise, "BLOCK", 32)
    monkeypatch.setattr(blockwise, "GROUP_SCORES", 4096)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("weight", "cache"), [(torch.float32, torch.float32), (E4M3, torch.bfloat16), (torch.bfloat16, E4M3)]
)
@pytest.mark.parametrize("sizes", [SMALL, ODD], ids=["small", "odd"])
@pytest.mark.parametrize(("first", "last"), [(0, 70), (45, 109), (64, 96), (3, 10)])
def test_matches_float64(sizes: object, weight: torch.dtype, cache: torch.dtype, first: int, last: int) -> None:
    """Whole prompts, later chunks, chunks on the borders of blocks, and the few tokens of the absorbed fallback."""
    case = make_case(sizes, last, weight, cache)  # type: ignore[arg-type]
    kept = case.cache(last + 5)
    if first:
        run(case, kept, 0, first)
    y = run(case, kept, first, last)
    for t in (first, (first + last) // 2, last - 1):
        expected = case.expected(kept, t, t + 1)
        torch.testing.assert_close(y[t - first : t - first + 1].double(), expected, rtol=2e-5, atol=1e-5)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.skipif(native.library() is None, reason="no compiler")
@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_absorbed_equals_expanded(cache: torch.dtype) -> None:
    case = make_case(SMALL, 100, torch.bfloat16, cache)
    whole, steps = case.cache(100), case.cache(100)
    expanded = run(case, whole, 0, 100)
    absorbed = torch.cat([case.run(steps, t, t + 4) for t in range(0, 100, 4)])
    # a stored latent may fall on the other side of a rounding: one unit of the cache's format
    close = {torch.float32: 1e-5, torch.bfloat16: 4e-3, E4M3: 4e-2}[cache]
    torch.testing.assert_close(absorbed, expanded, rtol=0, atol=close * float(expanded.std()))


def test_sequences_do_not_mix() -> None:
    cases = [make_case(SMALL, 90, torch.float32, torch.float32, seed=seed) for seed in (1, 2)]
    both = cases[0].cache(90, batch=2)
    starts = (0, 40)
    singles = []
    for b, (case, start) in enumerate(zip(cases, starts, strict=True)):
        case.kv_b, case.norm = cases[0].kv_b, cases[0].norm
        kept = case.cache(90)
        if start:
            run(case, kept, 0, start)
        both[0][b] = kept[0][0]
        singles.append(run(case, kept, start, start + 50))
    spans = [slice(start, start + 50) for start in starts]
    q = torch.stack([case.q_TX[span] for case, span in zip(cases, spans, strict=True)])
    kv = torch.stack([case.kv_TA[span] for case, span in zip(cases, spans, strict=True)])
    positions = torch.stack([torch.arange(start, start + 50) for start in starts])
    torch.testing.assert_close(cases[0].attend(blockwise.attend, q, kv, positions, both), torch.stack(singles))


@pytest.mark.parametrize("cache", [torch.bfloat16, E4M3], ids=str)
@pytest.mark.parametrize("tokens", [3, 40])
def test_compiles_into_one_graph_that_writes_in_place(cache: torch.dtype, tokens: int) -> None:
    """And the same graph serves any position: shapes do not depend on how much of the cache is used."""
    if tokens < 16 and native.library() is None:
        pytest.skip("no compiler")
    torch._dynamo.reset()  # the cases of this test share their code
    through = native.decode if tokens < 16 else blockwise.attend
    case = make_case(SMALL, 200, torch.bfloat16, cache)

    def step(q: Tensor, kv: Tensor, positions: Tensor, kept: Cache) -> Tensor:
        return case.attend(through, q * 1.0, kv, positions, kept) * 2.0

    compiled = torch.compile(step, fullgraph=True, dynamic=False)
    mine, theirs = case.cache(256), case.cache(256)
    with torch.inference_mode(), torch._dynamo.config.patch(error_on_recompile=True):
        for first in (0, tokens, 2 * tokens):
            span = slice(first, first + tokens)
            q, kv, positions = case.q_TX[None, span], case.kv_TA[None, span], torch.arange(first, first + tokens)[None]
            torch.testing.assert_close(compiled(q, kv, positions, mine), step(q, kv, positions, theirs))
    for a, b in zip(mine, theirs, strict=True):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))

"""The native decoding operators against float64, and what speculation relies on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from dsv3rt_mla import native
from hypothesis import given, settings
from hypothesis import strategies as st
from mla_cases import CACHES, E4M3, EIGHT, FORMATS, ODD, SMALL, TILED, Sizes, make_case

from dsv3rt.native.loader import NativeLibrary

pytestmark = pytest.mark.skipif(native.library() is None, reason="no compiler")


@pytest.fixture
def library() -> NativeLibrary | None:
    """Whose instruction sets `variant` goes through."""
    return native.library()


@pytest.mark.parametrize("weight", FORMATS, ids=str)
@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("sizes", [SMALL, ODD, TILED], ids=["small", "odd", "tiled"])
def test_matches_float64(variant: str, sizes: Sizes, weight: torch.dtype, cache: torch.dtype) -> None:
    case = make_case(sizes, 150, weight, cache)
    kept = case.cache(160)
    case.prefill(kept, 143)
    y = case.run(kept, 143, 148)
    expected = case.expected(kept, 143, 148)
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-5 * float(expected.std()))


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("sizes", [SMALL, TILED, EIGHT], ids=["small", "tiled", "eight"])
def test_a_long_past_matches_float64(variant: str, sizes: Sizes, cache: torch.dtype) -> None:
    """Several spans, and several chunks of a span; their last chunk of every size modulo 16 that five tokens meet."""
    case = make_case(sizes, 700, torch.bfloat16, cache)
    kept = case.cache(700)
    case.prefill(kept, 662)
    y = case.run(kept, 662, 667)
    expected = case.expected(kept, 662, 667)
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-5 * float(expected.std()))


@settings(max_examples=40, deadline=None)
@given(
    heads=st.integers(1, 40),
    latent=st.integers(1, 200),
    half_rope=st.integers(1, 20),
    nope=st.integers(1, 40),
    value=st.integers(1, 40),
    tokens=st.integers(1, 16),
    first=st.integers(0, 200),
    weight=st.sampled_from(FORMATS),
    cache=st.sampled_from(CACHES),
    interleaved=st.booleans(),
)
def test_any_shape_matches_float64(
    heads: int, latent: int, half_rope: int, nope: int, value: int, tokens: int, first: int,
    weight: torch.dtype, cache: torch.dtype, interleaved: bool,
) -> None:  # fmt: skip
    sizes = Sizes(heads, latent, 2 * half_rope, nope, value)
    case = make_case(sizes, first + tokens, weight, cache, interleaved=interleaved)
    kept = case.cache(first + tokens)
    case.prefill(kept, first)
    y = case.run(kept, first, first + tokens)
    # the first and the last token stand for all: the reference is slow
    expected = case.expected(kept, first, first + 1)
    torch.testing.assert_close(y[:1].double(), expected, rtol=2e-5, atol=1e-5)
    last = first + tokens
    expected = case.expected(kept, last - 1, last) if tokens > 1 else expected
    torch.testing.assert_close(y[-1:].double(), expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_what_is_cached(variant: str, cache: torch.dtype) -> None:
    case = make_case(ODD, 20, torch.float32, cache)
    kept = case.cache(20)
    case.prefill(kept, 20)
    exact = case.expected_cache(20)
    latent, key = case.layout.read(kept, 0, 20, torch.float64)[0].split([ODD.latent, ODD.rope], dim=-1)
    unit = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8, E4M3: 2.0**-8}[cache]
    torch.testing.assert_close(key, exact[:, ODD.latent :], rtol=unit, atol=1e-6)
    if cache == E4M3:
        # e4m3 has 3 bits of mantissa down to 2^-6, then steps of 2^-9, all times the token's scale
        scale = exact[:, : ODD.latent].abs().amax(-1, keepdim=True) / 448
        bound = torch.maximum(exact[:, : ODD.latent].abs() * 2.0**-4, scale * 2.0**-10) * 1.001
        assert ((latent - exact[:, : ODD.latent]).abs() <= bound).all()
    else:
        torch.testing.assert_close(latent, exact[:, : ODD.latent], rtol=unit, atol=1e-6)


@pytest.mark.parametrize("cache", [torch.bfloat16, E4M3], ids=str)
def test_narrowing_is_torchs(variant: str, cache: torch.dtype) -> None:
    """Stored codes are torch's roundings of the exact values."""
    case = make_case(SMALL, 16, torch.float32, cache)
    kept = case.cache(16)
    case.prefill(kept, 16)
    exact = case.expected_cache(16).float()[:, : SMALL.latent]
    again = case.layout.make(1, 16, torch.device("cpu"))
    case.layout.write(again, torch.arange(16)[None], exact[None], torch.zeros(1, 16, SMALL.rope))
    mine, theirs = (part[0][0, :, : SMALL.latent].contiguous().view(torch.uint8) for part in (kept, again))
    assert (mine == theirs).float().mean() > 0.999  # the normed value itself may differ in its last bit


@pytest.mark.parametrize("weight", FORMATS, ids=str)
@pytest.mark.parametrize("cache", [torch.bfloat16, E4M3], ids=str)
@pytest.mark.parametrize(
    "sizes",
    [SMALL, ODD, TILED, EIGHT, Sizes(17, 40, 4, 8, 8)],
    ids=["small", "odd", "tiled", "eight", "17 heads"],
)
def test_tokens_together_are_tokens_alone(variant: str, sizes: Sizes, weight: torch.dtype, cache: torch.dtype) -> None:
    """Bit for bit, across the border of a chunk, at any count up to 16 and with any number of threads."""
    case = make_case(sizes, 140, weight, cache)
    start = 120
    base = case.cache(140)
    case.prefill(base, start)
    alone = tuple(part.clone() for part in base)
    singles = torch.cat([case.run(alone, t, t + 1) for t in range(start, start + 16)])
    for count in (1, 2, 3, 5, 8, 16):
        torch.set_num_threads(1 + count % 3)
        together = tuple(part.clone() for part in base)
        y = case.run(together, start, start + count)
        assert torch.equal(y, singles[:count])
        for mine, theirs in zip(together, alone, strict=True):
            used = slice(0, start + count)
            assert torch.equal(mine[:, used].view(torch.uint8), theirs[:, used].view(torch.uint8))


def test_sequences_do_not_mix() -> None:
    one, two = (make_case(SMALL, 40, torch.bfloat16, torch.bfloat16, seed=seed) for seed in (1, 2))
    two = replace(one, q_TX=two.q_TX, kv_TA=two.kv_TA)
    starts = (3, 30)
    both = one.cache(64, batch=2)
    singles = []
    for b, (case, start) in enumerate(zip((one, two), starts, strict=True)):
        kept = case.cache(64)
        case.prefill(kept, start)
        both[0][b] = kept[0][0]
        singles.append(case.run(kept, start, start + 3))
    q, kv = (
        torch.stack([getattr(case, name)[s : s + 3] for case, s in zip((one, two), starts, strict=True)])
        for name in ("q_TX", "kv_TA")
    )
    positions = torch.stack([torch.arange(s, s + 3) for s in starts])
    assert torch.equal(one.attend(native.decode, q, kv, positions, both), torch.stack(singles))


def test_a_position_outside_the_cache_is_refused() -> None:
    case = make_case(SMALL, 8, torch.float32, torch.float32)
    with pytest.raises(RuntimeError):
        case.run(case.cache(4), 2, 6)

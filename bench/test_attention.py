"""Phase attention: one layer of moonlight-16b-a3b between its projections, at several context lengths.

Decoding: how long a step's attention takes at 64 and at 4,096 tokens of context; kv_b_proj is FP8 and read in the same
call. The layers of a round differ, so that neither weights nor latents come from a cache. Prefill: 512 tokens at the
end of the context, beside a float32 product of as many multiply-adds.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from dsv3rt_mla import blockwise, native
from dsv3rt_mla.cache import LatentCache
from measure import median_seconds, random_bytes, report_flops
from torch import Tensor

from dsv3rt.interfaces import Cache

HEADS, LATENT, ROPE, NOPE, VALUE = 16, 512, 64, 128, 128
LAYERS = 8
ROWS = HEADS * (NOPE + VALUE)
CACHES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
SCALARS = {
    "heads": HEADS,
    "nope": NOPE,
    "eps": 1e-6,
    "magnitude": 1.0,
    "scale": (NOPE + ROPE) ** -0.5,
    "interleaved": True,
}


def layers(context: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Cache]]:
    """(kv_b, its scales, a full cache) of each layer."""
    made = []
    for _ in range(LAYERS):
        weight = random_bytes(ROWS * LATENT).view(torch.float8_e4m3fn).view(ROWS, LATENT)
        cache = LatentCache(LATENT, ROPE, dtype).make(1, context, torch.device("cpu"))
        for part in cache:
            part.view(torch.uint8).fill_(0x31)
        made.append((weight, torch.rand(ROWS // 128, LATENT // 128) * 1e-2, cache))
    return made


def inputs(tokens: int, context: int) -> tuple[Tensor, ...]:
    q, kv = torch.randn(1, tokens, HEADS * (NOPE + ROPE)), torch.randn(1, tokens, LATENT + ROPE)
    frequencies = 50000.0 ** -(torch.arange(ROPE // 2) / (ROPE // 2))
    return q, kv, torch.ones(LATENT), torch.arange(context - tokens, context)[None], frequencies


@pytest.mark.benchmark(group="attention")
@pytest.mark.parametrize("cache", list(CACHES))
@pytest.mark.parametrize("context", [64, 1024, 4096])
@pytest.mark.parametrize("tokens", [1, 4])
def test_decode(benchmark: Any, tokens: int, context: int, cache: str) -> None:
    if native.library() is None:
        pytest.skip("no native kernels")
    stack, arguments = layers(context, CACHES[cache]), inputs(tokens, context)

    def step() -> None:
        for weight, scale, kept in stack:
            native.decode(*arguments, weight, scale, kept, **SCALARS)  # type: ignore[arg-type]

    benchmark.pedantic(step, rounds=15, warmup_rounds=2)
    if (median := median_seconds(benchmark)) is not None:
        benchmark.extra_info["us_per_layer"] = round(median / LAYERS * 1e6, 1)


@pytest.mark.benchmark(group="attention")
@pytest.mark.parametrize("context", [512, 4096])
def test_prefill(benchmark: Any, context: int) -> None:
    tokens = 512
    (weight, scale, kept), *_ = layers(context, torch.bfloat16)
    arguments = inputs(tokens, context)
    benchmark.pedantic(
        lambda: blockwise.attend(*arguments, weight, scale, kept, **SCALARS),  # type: ignore[arg-type]
        rounds=5,
        warmup_rounds=1,
    )
    products = context * LATENT * ROWS + tokens * context * HEADS * (NOPE + ROPE + VALUE)
    a, b = torch.randn(products // (2048 * 1024), 2048), torch.randn(2048, 1024)
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - begin)
    report_flops(benchmark, 2 * products, min(seconds))

"""Phase fp8-gemm: one matrix of moonlight-16b-a3b's shape against 1..16 tokens (decoding, verification) and 512
(prefill).

The matrices of a round lie in 400 MB of memory, so that they come from memory and not from a cache.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from dsv3rt_fp8 import native_ops
from measure import CALLS, packed, random_weights, report_bytes, report_flops
from torch import Tensor

ROWS, COLUMNS, MATRICES = 2816, 2048, 72
FORMATS = {"fp8": torch.float8_e4m3fn, "bf16": torch.bfloat16, "bf16 packed": torch.bfloat16}


@pytest.fixture(scope="module", params=list(FORMATS))
def product(request: pytest.FixtureRequest) -> Callable[[Tensor, int], Tensor]:
    """(x, number of a matrix) -> y."""
    if native_ops.library() is None:
        pytest.skip("no native kernels")
    dtype = FORMATS[request.param]
    count = MATRICES // dtype.itemsize
    weights = random_weights(count * ROWS * COLUMNS, dtype).view(count, ROWS, COLUMNS)
    copies = packed(list(weights)) if "packed" in request.param else []
    scale = torch.rand(ROWS // 128, COLUMNS // 128) * 1e-2

    def compute(x: Tensor, number: int) -> Tensor:
        weight = weights[number % count]
        if copies:
            return torch.ops.dsv3rt.packed_linear(x, weight, copies[number % count])  # type: ignore[no-any-return]
        if dtype == torch.float8_e4m3fn:
            return torch.ops.dsv3rt.fp8_linear(x, weight, scale)  # type: ignore[no-any-return]
        return torch.ops.dsv3rt.dense_linear(x, weight)  # type: ignore[no-any-return]

    compute.bytes = weights[0].nbytes  # type: ignore[attr-defined]
    compute.read_bytes = native_ops.packed_read_bytes(weights[0], copies[0]) if copies else weights[0].nbytes  # type: ignore[attr-defined]
    return compute


@pytest.mark.benchmark(group="fp8-gemm")
@pytest.mark.parametrize("tokens", [1, 2, 4, 8, 16])
def test_decode(benchmark: Any, product: Any, tokens: int) -> None:
    x, numbers = torch.randn(tokens, COLUMNS), itertools.count(0, 7)
    benchmark.pedantic(lambda: [product(x, next(numbers)) for _ in range(CALLS)], rounds=100, warmup_rounds=20)
    report_bytes(benchmark, CALLS * product.bytes, CALLS * product.read_bytes)


@pytest.mark.benchmark(group="fp8-gemm")
def test_prefill(benchmark: Any, product: Any) -> None:
    tokens = 512
    x, weight, numbers = torch.randn(tokens, COLUMNS), torch.randn(ROWS, COLUMNS), itertools.count(0, 7)
    seconds = []
    for _ in range(8):
        begin = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        seconds.append(time.perf_counter() - begin)
    benchmark.pedantic(lambda: product(x, next(numbers)), rounds=10, warmup_rounds=1)
    report_flops(benchmark, 2 * tokens * ROWS * COLUMNS, sorted(seconds)[len(seconds) // 2])

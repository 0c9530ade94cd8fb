"""Phase experts: all chosen experts of one moonlight-16b-a3b layer (64 experts, 6 a token) in one call.

Every call uses other experts out of 550 MB or more, so that they come from memory and not from a cache.
Legend: D hidden, F expert hidden, E experts, K chosen experts.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from dsv3rt_fp8 import native_ops
from measure import CALLS, packed, random_weights, report_bytes, report_flops
from torch import Tensor

D, F, E, K = 2048, 1408, 64, 6
FORMATS = {"fp8": torch.float8_e4m3fn, "bf16": torch.bfloat16, "bf16 packed": torch.bfloat16}


class Layer:
    """The experts as the operator wants them."""

    def __init__(self, kind: str) -> None:
        dtype = FORMATS[kind]
        self.matrix_bytes = D * F * dtype.itemsize
        self.format = native_ops.FORMATS[dtype]
        self.storage = random_weights(E * 3 * D * F, dtype)
        self.scales = torch.rand(16, 16) * 1e-3
        weights = [
            matrix.view((D, F) if index % 3 == 2 else (F, D))
            for index, matrix in enumerate(self.storage.view(E * 3, -1))
        ]
        self.packed = packed(weights) if "packed" in kind else []
        self.read_bytes = native_ops.packed_read_bytes(weights[0], self.packed[0]) if self.packed else self.matrix_bytes
        copies = [copy.data_ptr() for copy in self.packed] or [0] * len(weights)
        scales = self.scales.data_ptr()
        entries = [[weight.data_ptr(), scales, copy] for weight, copy in zip(weights, copies, strict=True)]
        self.table = torch.tensor(entries, dtype=torch.int64).view(E, 3, 3)

    def __call__(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        return torch.ops.dsv3rt.experts(x, weights, ids, self.table, F, self.format)  # type: ignore[no-any-return]


@pytest.fixture(scope="module", params=list(FORMATS))
def layer(request: pytest.FixtureRequest) -> Layer:
    if native_ops.library() is None:
        pytest.skip("no native kernels")
    return Layer(request.param)


def chosen(tokens: int) -> Tensor:
    return torch.stack([torch.randperm(E)[:K] for _ in range(tokens)])


@pytest.mark.benchmark(group="experts")
@pytest.mark.parametrize("tokens", [1, 2, 4])
def test_decode(benchmark: Any, layer: Layer, tokens: int) -> None:
    x, weights = torch.randn(tokens, D) * 1e-2, torch.rand(tokens, K)
    # one permutation dealt out in turn: a call never meets the experts of the call before
    deals = [torch.randperm(E)[:60].view(10, K) for _ in range(8 * tokens)]
    rounds = torch.cat(deals).view(-1, tokens, K)
    numbers = itertools.cycle(range(len(rounds)))

    def run() -> None:
        for _ in range(CALLS):
            layer(x, weights, rounds[next(numbers)])

    benchmark.pedantic(run, rounds=100, warmup_rounds=20)
    distinct = sum(len(ids.unique()) for ids in rounds) / len(rounds)
    visits = CALLS * distinct * 3
    report_bytes(benchmark, int(visits * layer.matrix_bytes), int(visits * layer.read_bytes))


@pytest.mark.benchmark(group="experts")
def test_prefill(benchmark: Any, layer: Layer) -> None:
    import time

    tokens = 512
    x, weights, ids = torch.randn(tokens, D) * 1e-2, torch.rand(tokens, K), chosen(tokens)
    one = torch.randn(F, D)
    rows = torch.randn(tokens * K, D)
    seconds = []
    for _ in range(4):
        begin = time.perf_counter()
        torch.nn.functional.linear(rows, one)
        seconds.append(3 * (time.perf_counter() - begin))
    benchmark.pedantic(lambda: layer(x, weights, ids), rounds=6, warmup_rounds=1)
    report_flops(benchmark, 2 * tokens * K * 3 * D * F, sorted(seconds)[len(seconds) // 2])

"""The GPU's way of computing. What is plain torch runs on the CPU too; the rest is skipped where there is no GPU.

Legend: D hidden, F expert hidden, E experts.
"""

from __future__ import annotations

import pytest
import torch
from dsv3rt_fp8 import gpu, numerics
from dsv3rt_fp8.experts import PROJECTIONS
from stored import random_codes, random_scales, relative_error
from test_modules import F_, D, E, K, loaded_experts, loaded_linear, mixture, routing, stored_fp8, value_of

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("kind", ["fp8", "float32"])
@pytest.mark.parametrize("tokens", [1, 2, 3, 40])
def test_stacked_experts(kind: str, tokens: int) -> None:
    """Gathered while pairs are fewer than experts, grouped from there on."""
    module, tensors = loaded_experts(kind)
    gate, up, down = (module._stack(module.matrices(projection)) for projection in PROJECTIONS)
    x, weights, ids = routing(tokens)
    assert (ids.numel() < E) == (tokens * K < E)
    y = gpu.experts(x, weights, ids, gate, up, down)
    assert relative_error(y, mixture(tensors, x, weights, ids)) < 2e-6


def test_stacking_keeps_names_and_values() -> None:
    module, _ = loaded_experts("fp8")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    stack = module._stack(module.matrices("up_proj"))
    after = module.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor.view(torch.uint8), after[name].contiguous().view(torch.uint8))
    assert stack.values_ENK.shape == (E, F_, D)
    assert module.expert(1).up_proj.weight.data_ptr() == stack.values_ENK[1].data_ptr()


def test_no_gpu_no_block_scaled_matmul() -> None:
    assert not gpu.has_block_scaled_mm(torch.device("cpu"))


@needs_gpu
def test_block_scaled_matmul_is_near() -> None:
    if not gpu.has_block_scaled_mm(torch.device("cuda", 0)):
        pytest.skip("not on this GPU")
    codes, scale, x = random_codes(256, 640).cuda(), random_scales(256, 640).cuda(), torch.randn(7, 640).cuda()
    expected = (x @ numerics.dequantize(codes, scale, torch.float32).T).double()
    assert relative_error(gpu.block_scaled_mm(x, codes, scale, ue8m0=False), expected) < 0.05


@needs_gpu
@pytest.mark.parametrize("kind", ["fp8", "bfloat16"])
def test_experts_on_the_gpu(kind: str) -> None:
    module, tensors = loaded_experts(kind)
    module.cuda()
    for tokens in (1, 40):
        x, weights, ids = routing(tokens)
        y = module(x.cuda().bfloat16(), weights.cuda(), ids.cuda())
        assert relative_error(y.cpu(), mixture(tensors, x, weights, ids)) < 0.02


@needs_gpu
def test_linear_on_the_gpu() -> None:
    tensors = stored_fp8("m", 576, 512)
    module = loaded_linear(tensors, 576, 512).cuda().eval()
    x = torch.randn(5, 512)
    assert relative_error(module(x.cuda()).cpu(), x.double() @ value_of(tensors, "m").T) < 0.05

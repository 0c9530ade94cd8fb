"""The native products against float64 arithmetic on the definition of each format.

Legend: T tokens, N outputs, K inputs.
"""

from __future__ import annotations

import pytest
import torch
from dsv3rt_fp8 import native_ops
from hypothesis import given, settings
from hypothesis import strategies as st
from stored import FINITE, exact, random_codes, random_scales, relative_error, unaligned
from torch import Tensor

pytestmark = pytest.mark.threads
COUNTS = range(1, 17)
DENSE = (torch.bfloat16, torch.float16, torch.float32)


def fp8_linear(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    y: Tensor = torch.ops.dsv3rt.fp8_linear(x, codes, scale)
    return y


def dense_linear(x: Tensor, weight: Tensor) -> Tensor:
    y: Tensor = torch.ops.dsv3rt.dense_linear(x, weight)
    return y


@pytest.mark.parametrize("times", [1, 3])
def test_every_code_is_read_exactly(variant: str, times: int) -> None:
    """A column of ones against each finite code, subnormals included, in every place of a row, short or long."""
    codes = torch.stack([FINITE.roll(shift) for shift in range(0, 254, 13)]).repeat(1, times).view(torch.float8_e4m3fn)
    eye, scale = torch.eye(254 * times), torch.ones(1, -(-254 * times // 128))
    for first in range(0, 254 * times, 127):
        for tokens in (1, 3, 127):
            y = fp8_linear(eye[first : first + tokens].contiguous(), codes, scale)
            assert torch.equal(y.double(), exact(codes, scale).T[first : first + tokens])


@pytest.mark.parametrize(("rows", "columns"), [(576, 512), (130, 1408), (1, 1), (5, 7), (129, 257), (64, 2048)])
def test_error_is_that_of_float32(variant: str, rows: int, columns: int) -> None:
    codes, scale = random_codes(rows, columns), random_scales(rows, columns)
    x = torch.randn(150, columns)
    for tokens in (1, 4, 20, 150):
        expected = x[:tokens].double() @ exact(codes, scale).T
        assert relative_error(fp8_linear(x[:tokens].contiguous(), codes, scale), expected) < 1e-6


@pytest.mark.parametrize("dtype", DENSE)
def test_dense_formats(variant: str, dtype: torch.dtype) -> None:
    for rows, columns in ((3, 5), (100, 333), (64, 512), (67, 1100)):
        weight, x = torch.randn(rows, columns).to(dtype), torch.randn(20, columns)
        for tokens in (1, 4, 20):
            expected = x[:tokens].double() @ weight.double().T
            assert relative_error(dense_linear(x[:tokens].contiguous(), weight), expected) < 1e-6


def test_half_precision_subnormals(variant: str) -> None:
    weight = torch.tensor([[2.0**-24, -(2.0**-15), 2.0**-14, 65504.0]], dtype=torch.float16)
    assert torch.equal(dense_linear(torch.eye(4), weight), weight.float().T)


@pytest.mark.parametrize("columns", [330, 650])
def test_a_token_does_not_depend_on_its_company(variant: str, columns: int) -> None:
    codes, scale = random_codes(200, columns), random_scales(200, columns)
    weights = [(torch.randn(200, columns) / 8).to(dtype) for dtype in DENSE]
    x = torch.randn(150, columns)
    for product in (
        lambda part: fp8_linear(part, codes, scale),
        *(lambda part, weight=weight: dense_linear(part, weight) for weight in weights),
    ):
        alone = torch.cat([product(x[t : t + 1].contiguous()) for t in range(len(x))])
        for tokens in COUNTS:
            assert torch.equal(product(x[:tokens].contiguous()), alone[:tokens])
            assert torch.equal(product(x[-tokens:].contiguous()), alone[-tokens:])
        # more than the sixteen that are promised: another order of additions, the same for all such numbers
        whole = product(x)
        for tokens in (17, 31, 129):
            assert torch.equal(product(x[:tokens].contiguous()), whole[:tokens])
            assert torch.equal(product(x[-tokens:].contiguous()), whole[-tokens:])
        assert relative_error(whole, alone.double()) < 1e-6


@pytest.mark.parametrize("columns", [300, 700])
@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_activations_of_any_size(variant: str, size: float, columns: int) -> None:
    """Of tiles, which take a float32 number apart, most of all."""
    codes, scale, x = random_codes(140, columns), torch.ones(2, -(-columns // 128)), torch.randn(33, columns) * size
    weight = torch.randn(140, columns).bfloat16()
    for tokens in (1, 33):
        part = x[:tokens].contiguous()
        assert relative_error(fp8_linear(part, codes, scale), part.double() @ exact(codes, scale).T) < 1e-6
        assert relative_error(dense_linear(part, weight), part.double() @ weight.double().T) < 1e-6


@pytest.mark.parametrize("columns", [200, 600])
def test_unaligned_memory(variant: str, columns: int) -> None:
    codes, scale, many = random_codes(70, columns), random_scales(70, columns), torch.randn(20, columns)
    for x in (many[:6], many):
        assert torch.equal(fp8_linear(x, unaligned(codes), unaligned(scale)), fp8_linear(x, codes, scale))
        for dtype in DENSE:
            weight = torch.randn(70, columns).to(dtype)
            assert torch.equal(dense_linear(x, unaligned(weight)), dense_linear(x, weight))


def test_threads_do_not_change_the_result(variant: str) -> None:
    codes, scale, x = random_codes(1024, 1024), random_scales(1024, 1024), torch.randn(3, 1024)
    alone = fp8_linear(x, codes, scale)
    torch.set_num_threads(4)
    assert torch.equal(fp8_linear(x, codes, scale), alone)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 1100),
    tokens=st.integers(0, 70),
    seed=st.integers(0, 2**31),
)
def test_any_shape(rows: int, columns: int, tokens: int, seed: int) -> None:
    library = native_ops.library()
    if library is None:
        pytest.skip("no compiler")
    torch.manual_seed(seed)
    codes, scale, x = random_codes(rows, columns), random_scales(rows, columns), torch.randn(tokens, columns)
    expected = x.double() @ exact(codes, scale).T
    for name in library.variants:
        before = library.select_variant(name)
        y = fp8_linear(x, codes, scale)
        library.select_variant(before)
        assert y.shape == (tokens, rows)
        bound = 1e-6 * (x.double().norm(dim=1, keepdim=True) * exact(codes, scale).norm(dim=1)) + 1e-30
        assert bool(((y.double() - expected).abs() <= bound).all())


def test_leading_dimensions_are_kept() -> None:
    if native_ops.library() is None:
        pytest.skip("no compiler")
    x, weight = torch.randn(2, 3, 4, 32), torch.randn(5, 32)
    assert dense_linear(x, weight).shape == (2, 3, 4, 5)
    assert dense_linear(x[0, 0, 0], weight).shape == (5,)


@pytest.mark.parametrize(
    ("weight", "scale"),
    [
        (torch.zeros(130, 64).to(torch.float8_e4m3fn), torch.ones(1, 1)),
        (torch.zeros(130, 64).to(torch.float8_e4m3fn), torch.ones(2, 1, dtype=torch.float64)),
        (torch.zeros(130, 64, dtype=torch.bfloat16), torch.ones(2, 1)),
        (torch.zeros(130, 65).to(torch.float8_e4m3fn), torch.ones(2, 1)),
    ],
)
def test_misfits_are_refused(weight: Tensor, scale: Tensor) -> None:
    if native_ops.library() is None:
        pytest.skip("no compiler")
    with pytest.raises(RuntimeError):
        fp8_linear(torch.zeros(1, 64), weight, scale)


def test_nan_codes_are_found(variant: str) -> None:
    codes = random_codes(1, 3_000_001).view(torch.uint8)
    assert not native_ops.has_nan(codes.view(torch.float8_e4m3fn))
    for place, code in ((0, 0x7F), (1_500_000, 0xFF), (3_000_000, 0x7F)):
        spoiled = codes.clone()
        spoiled[0, place] = code
        assert native_ops.has_nan(spoiled.view(torch.float8_e4m3fn))

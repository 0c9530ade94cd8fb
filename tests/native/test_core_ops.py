"""The core's native operators against plain torch, on every instruction set this machine has."""

from __future__ import annotations

import pytest
import torch

from dsv3rt import native
from dsv3rt.errors import UsageError
from dsv3rt.native.loader import NativeLibrary

pytestmark = pytest.mark.threads
EPS = 1e-6


@pytest.fixture
def library() -> NativeLibrary | None:
    """Whose instruction sets `variant` goes through."""
    return native.core_library()


def reference(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 256), (3, 5, 100), (40, 33), (2, 1), (0, 8)])
def test_rms_norm_matches_float64(variant: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape), torch.randn(shape[-1]).to(dtype)
    torch.testing.assert_close(native.rms_norm(x, weight, EPS).double(), reference(x, weight), rtol=2e-6, atol=1e-6)


def test_a_row_does_not_depend_on_the_others(variant: str) -> None:
    x, weight = torch.randn(65, 200), torch.randn(200)
    whole = native.rms_norm(x, weight, EPS)
    for row in (0, 15, 16, 64):
        assert torch.equal(whole[row], native.rms_norm(x[row : row + 1], weight, EPS)[0])


def test_slices_of_wider_rows_are_read_in_place(variant: str) -> None:
    wide, weight = torch.randn(4, 6, 96), torch.randn(64)
    part = wide[..., :64]
    assert torch.equal(native.rms_norm(part, weight, EPS), native.rms_norm(part.contiguous(), weight, EPS))


def test_add_rms_norm_returns_the_sum_too(variant: str) -> None:
    x, residual, weight = torch.randn(7, 64), torch.randn(7, 64), torch.randn(64)
    total, normed = native.add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, native.rms_norm(total, weight, EPS))


@pytest.mark.parametrize(("size", "k"), [(2048, 64), (129280, 64), (100, 100), (37, 5), (17, 1)])
def test_greatest_is_a_sorted_row_s_beginning(variant: str, size: int, k: int) -> None:
    x = torch.randn(3, size)
    x[1] = x[1].mul(3).round()  # many equals, of which the lowest ids are wanted
    x[2, ::7] = float("-inf")
    values, ids = native.greatest(x, k)
    expected = torch.sort(x, dim=-1, descending=True, stable=True)
    assert torch.equal(values, expected.values[:, :k])
    assert torch.equal(ids, expected.indices[:, :k])


@pytest.mark.parametrize("slope", [-1.0, 0.0, 1.0])
def test_greatest_of_rows_in_order(variant: str, slope: float) -> None:
    _, ids = native.greatest(slope * torch.arange(1000.0)[None], 64)
    assert ids[0].tolist() == (list(range(999, 935, -1)) if slope > 0 else list(range(64)))


def test_greatest_shows_what_is_not_a_number(variant: str) -> None:
    x = torch.randn(1, 500)
    x[0, 430] = float("nan")
    values, ids = native.greatest(x, 8)
    assert values[0, 0].isnan() and ids[0, 0] == 430
    assert native.greatest(torch.full((1, 500), float("nan")), 8)[1].tolist() == [list(range(8))]


def test_gradients_take_the_plain_path() -> None:
    x = torch.randn(3, 16, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(16, requires_grad=True)
    native.rms_norm(x, weight, EPS).sum().backward()
    assert x.grad is not None and weight.grad is not None


def test_compiles_into_one_graph() -> None:
    weight = torch.randn(32)

    @torch.compile(fullgraph=True)
    def twice(x: torch.Tensor) -> torch.Tensor:
        return native.rms_norm(native.rms_norm(x, weight, EPS) * 2, weight, EPS)

    x = torch.randn(2, 32)
    with torch.no_grad():
        torch.testing.assert_close(twice(x).double(), reference(reference(x, weight) * 2, weight), rtol=1e-5, atol=1e-6)


def test_a_wrong_weight_is_refused() -> None:
    if native.core_library() is None:
        pytest.skip("no compiler")
    with pytest.raises(RuntimeError, match="weight must be"):
        torch.ops.dsv3rt.rms_norm(torch.randn(2, 8), torch.randn(7), EPS)


def test_an_instruction_set_the_machine_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from dsv3rt.native import loader

    monkeypatch.setenv("DSV3RT_ISA", "avx512")
    with pytest.raises(UsageError, match="cannot run here"):
        loader._wanted_variant(best=0)


def test_read_bandwidth_is_plausible() -> None:
    assert 0.1 < native.read_bandwidth_gbs(megabytes=16, repeats=2) < 10_000

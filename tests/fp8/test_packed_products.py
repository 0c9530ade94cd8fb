"""Products with packed weights: each equals the plain one bit for bit.

Legend: T tokens, N outputs, K inputs.
"""

from __future__ import annotations

import ctypes

import pytest
import torch
from dsv3rt_fp8 import native_ops
from hypothesis import given, settings
from hypothesis import strategies as st
from stored import same, unaligned
from torch import Tensor

TOKENS = (1, 2, 3, 4, 7, 16, 17)


def packed_of(weight: Tensor, *, expect: bool = True) -> Tensor:
    room = native_ops.make_rooms([weight.shape])[0]
    assert native_ops.pack_weights(weight, room) == expect
    assert (native_ops.packed_read_bytes(weight, room.word) > 0) == expect
    return room.word


def assert_same(weight: Tensor, packed: Tensor, tokens: tuple[int, ...] = TOKENS, x: Tensor | None = None) -> None:
    """`x`: at least as many rows as `tokens`, or a number of tokens is left out; None is random ones."""
    x = torch.randn(max(tokens), weight.shape[1]) if x is None else x
    for count in (count for count in tokens if count <= len(x)):
        part = x[:count].contiguous()
        plain = torch.ops.dsv3rt.dense_linear(part, weight)
        assert same(torch.ops.dsv3rt.packed_linear(part, weight, packed), plain), count


def normal(rows: int, columns: int) -> Tensor:
    return (torch.randn(rows, columns) / columns**0.5).bfloat16()


def words(values: Tensor) -> Tensor:
    """bfloat16 with these 16 bits."""
    return values.to(torch.int32).to(torch.int16).view(torch.bfloat16)


@pytest.mark.parametrize(
    "shape", [(64, 2048), (130, 1408), (67, 300), (5, 7), (1, 1), (3, 128), (33, 2049), (576, 512)]
)
def test_products_are_bitwise_the_plain_ones(packs: str, shape: tuple[int, int]) -> None:
    weight = normal(*shape)
    assert_same(weight, packed_of(weight))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 200),
    columns=st.integers(1, 700),
    tokens=st.integers(1, 16),
    spread=st.sampled_from([0.0, 1.0, 3.0]),
    seed=st.integers(0, 2**31),
)
def test_any_shape(rows: int, columns: int, tokens: int, spread: float, seed: int) -> None:
    """`spread`: how much larger some weights of a row are than others, so that there are more escapes, or too many."""
    library = native_ops.library()
    if library is None:
        pytest.skip("no compiler")
    torch.manual_seed(seed)
    weight = (normal(rows, columns) * torch.exp(spread * torch.randn(rows, columns))).bfloat16()
    for name in library.variants:
        before = library.select_variant(name)
        try:
            if native_ops.reads_packed():
                room = native_ops.make_rooms([weight.shape])[0]
                native_ops.pack_weights(weight, room)
                assert_same(weight, room.word, (tokens,))
        finally:
            library.select_variant(before)


def test_every_exponent(packs: str) -> None:
    """Every bit pattern there is, subnormals, infinities and NaN too: a row has those of fifteen exponents."""
    for floor in range(0, 256, 15):
        exponents = torch.arange(floor, min(floor + 15, 256))
        row = (exponents[:, None] << 7 | torch.arange(128)).flatten()
        weight = words(torch.stack([row, row | 0x8000]))
        packed = packed_of(weight)
        # one column at a time: else a NaN or an infinity hides the others
        eye = torch.eye(row.numel())
        for some in (*eye.split(16)[::8], eye[-16:]):
            assert_same(weight, packed, (1, 2, 16), some)


@pytest.mark.parametrize("columns", [300, 512])
def test_an_escape_in_every_place(packs: str, columns: int) -> None:
    weight = torch.full((columns, columns), 1.0, dtype=torch.bfloat16)
    weight.diagonal().copy_(torch.tensor([2.0**-60, -(2.0**50), float.fromhex("-0x1p-130")]).repeat(columns)[:columns])
    packed = packed_of(weight)
    for some in torch.eye(columns).split(16):
        assert_same(weight, packed, (1, 2, 16), some)


def test_zeros(packs: str) -> None:
    weight = normal(20, 260)
    weight[3] = 0.0
    weight[7] = -0.0
    weight[:, 10] = -0.0
    weight[11, :200] = 0.0
    assert_same(weight, packed_of(weight))
    assert_same(torch.zeros_like(weight), packed_of(torch.zeros_like(weight)))


def test_too_many_escapes_are_refused(packs: str) -> None:
    weight = normal(64, 256)
    weight[:, ::100] = 2.0**-100
    packed = packed_of(weight, expect=False)
    assert_same(weight, packed)


def test_unaligned_weights(packs: str) -> None:
    weight = unaligned(normal(50, 200))
    assert_same(weight, packed_of(weight))


def test_threads_do_not_change_the_result(packs: str) -> None:
    weight = normal(1024, 1024)
    packed = packed_of(weight)
    threads = torch.get_num_threads()
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            assert_same(weight, packed)
    finally:
        torch.set_num_threads(threads)


def test_other_kernels_do_not_read_it() -> None:
    """Their vectors are of another width."""
    library = native_ops.library()
    if library is None or not native_ops.reads_packed():
        pytest.skip("nothing is packed here")
    weight = normal(60, 333)
    packed = packed_of(weight)
    for name in library.variants:
        before = library.select_variant(name)
        try:
            assert_same(weight, packed)
        finally:
            library.select_variant(before)


def test_stopped_or_discarded_it_is_not_read(packs: str) -> None:
    weight = normal(40, 256)
    room = native_ops.make_rooms([weight.shape])[0]
    assert not native_ops.pack_weights(weight, room, ctypes.c_int32(1))
    assert not native_ops.pack_weights(weight, room)  # for good
    room = native_ops.make_rooms([weight.shape])[0]
    native_ops.discard_packed(room.word)
    assert not native_ops.pack_weights(weight, room)
    packed = packed_of(weight)
    native_ops.discard_packed(packed)
    weight.mul_(3)
    assert_same(weight, packed)


def test_a_copy_of_the_word_means_nothing(packs: str) -> None:
    weight = normal(40, 256)
    copied = packed_of(weight).clone()  # and the packed weights are gone
    assert native_ops.packed_read_bytes(weight, copied) == 0
    assert_same(weight, copied)


def test_it_says_that_it_is_wanted(packs: str) -> None:
    weight = normal(64, 256)
    room = native_ops.make_rooms([weight.shape])[0]
    assert not native_ops.is_wanted(room.word)
    torch.ops.dsv3rt.packed_linear(torch.randn(20, 256), weight, room.word)
    assert not native_ops.is_wanted(room.word)  # so many tokens do not read it
    assert_same(weight, room.word, (1,))
    assert native_ops.is_wanted(room.word)
    assert native_ops.pack_weights(weight, room)
    assert_same(weight, room.word)


@pytest.mark.parametrize(("dtype", "packed"), [("float16", torch.int64), ("bfloat16", torch.int32)])
def test_misfits_are_refused(dtype: str, packed: torch.dtype) -> None:
    if native_ops.library() is None:
        pytest.skip("no compiler")
    weight = torch.zeros(8, 8, dtype=getattr(torch, dtype))
    with pytest.raises(RuntimeError):
        torch.ops.dsv3rt.packed_linear(torch.zeros(1, 8), weight, torch.zeros(2, dtype=packed))

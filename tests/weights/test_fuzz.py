"""Whatever the bytes, reading ends well or in a CheckpointError; what is written, an independent reader reads."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dsv3rt.errors import CheckpointError
from dsv3rt.testing.writer import Planned, split_evenly, write_shards
from dsv3rt.weights.header import read_header
from dsv3rt.weights.source import Checkpoint

DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.uint8]
TENSORS = st.lists(st.tuples(st.lists(st.integers(0, 5), max_size=3), st.sampled_from(DTYPES)), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(TENSORS, st.integers(1, 4), st.integers(0, 2**32))
def test_written_shards_read_back(shapes: list[tuple[list[int], torch.dtype]], shards: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    planned = [Planned(f"t{number}", tuple(shape), dtype) for number, (shape, dtype) in enumerate(shapes)]
    written: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for item, stream in write_shards(folder, split_evenly(planned, shards)):
            written[item.name] = torch.randint(0, 120, (item.nbytes,), generator=generator).byte().numpy().tobytes()
            stream.write(written[item.name])
        source = Checkpoint(folder)
        independent = {key: value for file in source.layout.files for key, value in load_file(file).items()}
        assert set(source.names()) == set(independent) == set(written)
        for item in planned:
            got = source.get(item.name, shape=item.shape)
            assert got.dtype == item.dtype == independent[item.name].dtype
            for tensor in (got, independent[item.name]):
                assert tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() == written[item.name]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6), st.integers(0, 400))
def test_damaged_files_never_surprise(flips: list[tuple[int, int]], cut: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "model.safetensors"
        save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, file)
        data = bytearray(file.read_bytes())
        for at, value in flips:
            data[at % len(data)] = value
        file.write_bytes(data[: len(data) - cut % len(data)] if cut else data)
        try:
            source = Checkpoint(file.parent)
            for tensor in source.names():
                source.get(tensor)
        except CheckpointError as error:
            assert "\n" not in str(error)


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        st.none() | st.integers(-(2**70), 2**70) | st.text(max_size=5) | st.sampled_from(["F32", "dtype", "shape"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_as_header_and_index(value: object) -> None:
    text = json.dumps(value).encode()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "model.safetensors"
        file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
        for attempt in (lambda: read_header(file), lambda: Checkpoint(folder)):
            with contextlib.suppress(CheckpointError):
                attempt()
        file.unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": value}))
        with contextlib.suppress(CheckpointError):
            Checkpoint(folder)

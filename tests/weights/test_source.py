"""Reading checkpoints: what a folder may look like, and one line for each way it can be broken."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dsv3rt.errors import CheckpointError
from dsv3rt.weights.header import read_header
from dsv3rt.weights.locate import locate
from dsv3rt.weights.source import Checkpoint

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b": torch.ones(5, dtype=torch.bfloat16),
    "c": torch.full((2, 3), 0.5).to(torch.float8_e4m3fn),
    "odd": torch.tensor([7], dtype=torch.uint8),
    "scalar": torch.tensor(2.5),
}


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """a and b in one shard, the rest in another."""
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save_file({name: TENSORS[name] for name in "ab"}, tmp_path / first)
    save_file({name: TENSORS[name] for name in TENSORS if name not in "ab"}, tmp_path / second)
    write_index(tmp_path, {name: first if name in "ab" else second for name in TENSORS})
    return tmp_path


def check_all(source: Checkpoint) -> None:
    assert set(source.names()) == set(TENSORS)
    for name, expected in TENSORS.items():
        got = source.get(name, shape=expected.shape)
        assert got.dtype == expected.dtype
        assert torch.equal(got.float(), expected.float())
    assert source.unused() == ()
    assert source.consumed_bytes == source.total_bytes == sum(tensor.nbytes for tensor in TENSORS.values())


def test_sharded(sharded: Path) -> None:
    check_all(Checkpoint(sharded))


def test_shards_without_an_index(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    check_all(Checkpoint(sharded))
    (sharded / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002.safetensors"):
        Checkpoint(sharded)


@pytest.mark.parametrize("name", ["model.safetensors", "weights.safetensors"])
def test_single_file(tmp_path: Path, name: str) -> None:
    save_file(TENSORS, tmp_path / name)
    (tmp_path / "pytorch_model.bin").touch()
    check_all(Checkpoint(tmp_path))


def test_links_to_a_hub_cache(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    snapshot = tmp_path_factory.mktemp("snapshot")
    for file in sharded.iterdir():
        (snapshot / file.name).symlink_to(file)
    check_all(Checkpoint(snapshot))


def test_get_copies_nothing(tmp_path: Path) -> None:
    big = torch.zeros(16 << 20, dtype=torch.uint8)
    save_file({"big": big}, tmp_path / "model.safetensors")
    source = Checkpoint(tmp_path)
    assert source.get("big").data_ptr() == source.get("big").data_ptr()
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    start, end = (int(part, 16) for part in mapped[0].split()[0].split("-"))
    assert start <= source.get("big").data_ptr() < end


def test_headers_tell_without_reading(sharded: Path) -> None:
    infos = Checkpoint(sharded).infos
    for name, tensor in TENSORS.items():
        assert (infos[name].shape, infos[name].dtype, infos[name].nbytes) == (tensor.shape, tensor.dtype, tensor.nbytes)


def test_missing_and_misshapen_tensors(sharded: Path) -> None:
    source = Checkpoint(sharded)
    with pytest.raises(CheckpointError, match=r"d is missing: none of the 2 shards"):
        source.get("d")
    with pytest.raises(CheckpointError, match=r"00001-of-00002.safetensors: a has shape \[3, 4\].*\[4, 3\]"):
        source.get("a", shape=(4, 3))
    assert source.unused() == source.names()


def test_missing_scale(tmp_path: Path) -> None:
    save_file({"x.weight": TENSORS["c"]}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"x.weight in model.safetensors is FP8 but its scale x.weight_scale_inv"):
        Checkpoint(tmp_path).get("x.weight_scale_inv")


def truncate(folder: Path) -> None:
    file = folder / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def lengthen(folder: Path) -> None:
    with (folder / "model-00002-of-00002.safetensors").open("ab") as stream:
        stream.write(b"x")


def cut_header(folder: Path) -> None:
    file = folder / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:20])


def hold_twice(folder: Path) -> None:
    save_file({**{name: TENSORS[name] for name in TENSORS if name not in "ab"}, "a": TENSORS["a"]},
              folder / "model-00002-of-00002.safetensors")  # fmt: skip


def lack_indexed(folder: Path) -> None:
    save_file({"a": TENSORS["a"]}, folder / "model-00001-of-00002.safetensors")


BREAKS: dict[Callable[[Path], object], str] = {
    truncate: "00002-of-00002.safetensors is truncated",
    lengthen: "1 bytes longer than its header says",
    cut_header: "truncated within its header",
    hold_twice: "both hold a",
    lack_indexed: "does not hold b",
    lambda folder: (folder / "model-00001-of-00002.safetensors").unlink(): "1 of 2 weight files are missing",
    lambda folder: (folder / "model-00001-of-00002.safetensors").write_bytes(b""): "is not a safetensors file",
    lambda folder: (folder / "model-00001-of-00002.safetensors").write_bytes(b"\xff" * 99): "is not a safetensors file",
    lambda folder: write_index(folder, {"a": "../secret.safetensors"}): "outside the folder",
    lambda folder: write_index(folder, {"a": "/etc/x.safetensors"}): "outside the folder",
    lambda folder: write_index(folder, {"a": "pytorch_model.bin"}): "only safetensors",
    lambda folder: write_index(folder, {}): "has no weight_map",
    lambda folder: (folder / "model.safetensors.index.json").write_text("{"): "not readable JSON",
    lambda folder: (folder / "model.safetensors.index.json").write_text("[1]"): "has no weight_map",
    lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 3}}'): "mapped to 3",
}


@pytest.mark.parametrize("number", range(len(BREAKS)))
def test_broken_folders(sharded: Path, number: int) -> None:
    damage, complaint = list(BREAKS.items())[number]
    damage(sharded)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        Checkpoint(sharded)
    assert caught.value.fix
    assert "\n" not in str(caught.value)


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        "[]",
        "{",
        "[" * 5000,
        json.dumps({"a": 3}),
        json.dumps({"a": {**GOOD, "shape": [3]}}),
        json.dumps({"a": {**GOOD, "shape": [-2]}}),
        json.dumps({"a": {**GOOD, "shape": [2.0]}}),
        json.dumps({"a": {**GOOD, "dtype": "F4"}}),
        json.dumps({"a": {**GOOD, "data_offsets": [0]}}),
        json.dumps({"a": {**GOOD, "data_offsets": [8, 16]}}),
        json.dumps({"a": GOOD, "b": GOOD}),
        f'{{"a": {json.dumps(GOOD)}, "a": {json.dumps(GOOD)}}}',
    ],
)
def test_malformed_headers(tmp_path: Path, header: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(8))
    with pytest.raises(CheckpointError, match=r"malformed|does not read"):
        read_header(file)


def test_folders_without_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights"):
        Checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        Checkpoint(tmp_path / "nowhere")
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match=r"refused, pickle.*safetensors"):
        Checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="is not a folder"):
        Checkpoint(tmp_path / "pytorch_model.bin")


def test_locate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert locate(tmp_path) == tmp_path
    with pytest.raises(CheckpointError, match=r"dsv3rt download org/name"):
        locate("org/name")
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc1"
    snapshot.mkdir(parents=True)
    assert locate("org/name") == snapshot
    (snapshot.parent / "abc2").mkdir()
    with pytest.raises(CheckpointError):
        locate("org/name")
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text("abc2")
    assert locate("org/name") == snapshot.parent / "abc2"
    (snapshot / "config.json").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        locate(snapshot / "config.json")
    with pytest.raises(CheckpointError, match="does not exist"):
        locate("/no/such/folder")

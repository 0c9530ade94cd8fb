"""`dsv3rt inspect`: from config and index alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsv3rt.cli.main import run
from dsv3rt.testing import PRESETS, preset, random_checkpoint

Capture = pytest.CaptureFixture[str]


def inspect(capfd: Capture, *arguments: str) -> dict[str, Any]:
    assert run(["inspect", *arguments, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_a_whole_checkpoint(tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv3rt.native.read_bandwidth_gbs", lambda: 20.0)
    folder = random_checkpoint(tmp_path / "made", preset("tiny"), fp8=True, shards=3, tokenizer=True)
    facts = inspect(capfd, str(folder), "-c", "1000")
    assert facts["family"] == "DeepSeek-V3" and facts["format"].startswith("fp8")
    assert facts["files"]["complete"] and facts["files"]["present"] == 3
    assert facts["disk_bytes"] == facts["files"]["indexed_bytes"]
    assert facts["layers"] == {"dense": 1, "moe": 3} and facts["mtp_modules"] == 1
    assert facts["tokenizer"] == {"file": "tokenizer.json", "chat_template": True}
    assert facts["generation_defaults"] == {"bos_token_id": 256, "eos_token_id": 257}
    assert facts["memory"]["cache"] == 1000 * facts["cache_bytes_per_token"] and facts["memory"]["fits"]
    assert facts["limit_tps"] == pytest.approx(20e9 / facts["weight_bytes_per_token"])
    assert 0 < facts["predicted_tps"] < facts["limit_tps"]
    assert facts["plan"]["attention"]["name"] == "mla" and facts["plan"]["routing"]["name"] == "bias_topk"
    assert run(["inspect", str(folder), "--no-bandwidth"]) == 0
    table = capfd.readouterr().out
    assert "eos_token_id 257" in table and facts["plan"]["kernels"].split()[0] in table
    assert "0.00B" not in table and "fits" in table and "mla" in table


def test_packed_weights_are_counted(capfd: Capture) -> None:
    pytest.importorskip("dsv3rt_fp8")
    packed, plain = (
        inspect(capfd, "small", "--no-bandwidth", "--quantization", f"dense:pack={mode}") for mode in ("auto", "off")
    )
    if "packed" not in packed["plan"]["kernels"]:
        pytest.skip("no kernels for packed weights")
    assert 0.75 < packed["weight_bytes_per_token"] / plain["weight_bytes_per_token"] < 0.8
    assert packed["memory"]["packed"] > 0 and plain["memory"]["packed"] == 0


def test_before_downloading(tmp_path: Path, capfd: Capture) -> None:
    """config.json alone; then with an index; then with some of the shards."""
    whole = random_checkpoint(tmp_path / "whole", preset("tiny"), shards=3)
    part = tmp_path / "part"
    part.mkdir()
    (part / "config.json").write_bytes((whole / "config.json").read_bytes())
    expected = inspect(capfd, str(whole), "--no-bandwidth")
    bare = inspect(capfd, str(part), "--no-bandwidth")
    assert "limit_tps" not in bare
    assert bare["files"]["expected"] is None and not bare["files"]["complete"]
    assert {key: bare[key] for key in ("parameters", "disk_bytes")} == {
        key: expected[key] for key in ("parameters", "disk_bytes")
    }
    (part / "model.safetensors.index.json").write_bytes((whole / "model.safetensors.index.json").read_bytes())
    indexed = inspect(capfd, str(part), "--no-bandwidth")["files"]
    assert indexed["present"] == 0 and indexed["missing_tensors"] == 0 and not indexed["complete"]
    assert indexed["indexed_bytes"] == expected["disk_bytes"]
    shard = next(whole.glob("model-00001*"))
    (part / shard.name).write_bytes(shard.read_bytes())
    assert inspect(capfd, str(part), "--no-bandwidth")["files"]["present"] == 1


@pytest.mark.parametrize("name", PRESETS)
def test_presets(capfd: Capture, name: str) -> None:
    facts = inspect(capfd, name, "--no-bandwidth")
    assert "error" not in facts["plan"]


def test_official_cache_bytes(capfd: Capture) -> None:
    """By the attention plugin itself, which caches latents in 16 bits."""
    assert inspect(capfd, "v3", "--no-bandwidth")["cache_bytes_per_token"] == 70272


def test_complaints(tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = random_checkpoint(tmp_path / "made", preset("tiny"))
    (tmp_path / "empty").mkdir()
    for arguments, code, words in [
        ([str(tmp_path / "nowhere")], 1, "does not exist"),
        (["org/name"], 1, "dsv3rt download org/name"),
        ([str(tmp_path / "empty")], 1, "no config.json"),
        ([str(folder), "-c", "999999"], 2, "context 999999 is outside 1..4096"),
        ([str(folder), "--routing", "bias_topc"], 1, "did you mean 'bias_topk'?"),
        ([str(folder), "-c", "0"], 2, "0 is not in the range"),
    ]:
        assert run(["inspect", *arguments]) == code
        out, err = capfd.readouterr()
        assert out == "" and words in err and len(err.splitlines()) == 1
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    assert run(["inspect", str(folder)]) == 1
    assert "truncated" in capfd.readouterr().err

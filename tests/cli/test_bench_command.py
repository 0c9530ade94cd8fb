"""`dsv3rt bench`: the contract others script against."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_cases import PLAIN

from dsv3rt.cli.main import run
from dsv3rt.config import ModelConfig
from dsv3rt.weights.sizes import Sizes


@pytest.fixture(autouse=True)
def known_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv3rt.native.read_bandwidth_gbs", lambda: 20.0)


def test_json_contract(tiny_bare: Path, as_json: Callable[..., dict[str, Any]]) -> None:
    found = as_json("bench", str(tiny_bare), "--prompt-tokens", "20", "--gen-tokens", "10", "--repeat", "2", *PLAIN)
    for name in ("prefill_tps", "decode_tps", "ttft_s", "bandwidth_fraction"):
        assert found[name].keys() == {"min", "median", "max"}
        assert 0 < found[name]["min"] <= found[name]["median"] <= found[name]["max"]
    sizes = Sizes.of(ModelConfig.from_folder(tiny_bare))
    assert found["weight_bytes_per_token"] == sizes.read_bytes_per_token
    assert found["machine_read_gbs"] == 20 and found["peak_rss_bytes"] > 0
    assert found["prompt_tokens"] == 20, "every run computes the whole prompt"
    assert found["gen_tokens"] == 10
    fraction = found["weight_bytes_per_token"] * found["decode_tps"]["max"] / found["machine_read_gbs"] / 1e9
    assert found["bandwidth_fraction"]["max"] == pytest.approx(fraction)


def test_table(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", str(tiny), "--prompt-tokens", "4", "--gen-tokens", "3", "--repeat", "1", *PLAIN]
    assert run(arguments) == 0
    table = capfd.readouterr().out
    assert all(word in table for word in ("prefill", "decode", "first token", "GB/s"))


def test_refusals(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(tiny), "--prompt-tokens", "128", *PLAIN]) == 1
    assert "do not fit the context of 128" in capfd.readouterr().err
    assert run(["bench", str(tiny), "--repeat", "0", *PLAIN]) == 2

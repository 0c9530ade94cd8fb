"""`dsv3rt train` and `dsv3rt eval` from the command line's side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import dsv3rt_train
import pytest
from click.testing import CliRunner
from dsv3rt_train import plots, run
from dsv3rt_train.commands import evaluate
from dsv3rt_train.data import tokenizer
from dsv3rt_train.data.documents import texts_of
from train_cases import TINY

from dsv3rt.cli.options import Loading
from dsv3rt.errors import UserError
from dsv3rt.plugin_manager import Plugins


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, plugins: Plugins) -> click.Group:
    """The plugin's commands, with the plugins of this checkout whether or not it is installed."""
    monkeypatch.setattr(run, "discover", lambda *_: plugins)
    group = click.Group()
    dsv3rt_train.register_commands(cli=group)
    return group


@pytest.fixture
def material(tmp_path: Path) -> Path:
    """A data file, a tokenizer and a config."""
    records = [{"messages": [{"role": "user", "content": f"Say {w}."}, {"role": "assistant", "content": f"{w} {w}!"}]}
               for w in "red green blue black white brown pink grey".split()] * 6  # fmt: skip
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*records, {"text": "Grass is green."}]))
    tokenizer.save(tokenizer.train(texts_of(records), 290), tmp_path, max_length=128)
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "vocab_size": 290}))
    return tmp_path


def _json(cli: click.Group, *arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(cli, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    facts: dict[str, Any] = json.loads(result.stdout)
    return facts


def test_run_resume_export_plot(cli: click.Group, material: Path) -> None:
    common = (
        "--config",
        material / "config.json",
        "--tokenizer",
        material,
        "-d",
        material / "data.jsonl",
        "--tokens",
        128,
    )
    schedule = ("--warmup", 2, "--save-every", 3, "--micro-batches", 1, "--threads", 1, "--tokens", 128)
    out = material / "out"
    first = _json(cli, "train", "run", out, *common, *schedule, "--steps", 4)
    assert first["steps"] == 4 and (out / "curves.png").read_bytes()[:4] == b"\x89PNG"
    again = _json(cli, "train", "run", out, *common, *schedule, "--steps", 6)
    assert [m["step"] for m in plots.read_metrics(out)] == list(range(6))
    for name in (
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        assert (Path(again["checkpoint"]) / name).is_file()
    both = Path(_json(cli, "train", "plot", out, out, "--out", material / "both.png")["png"])
    assert both.read_bytes()[:4] == b"\x89PNG"
    exported = _json(cli, "train", "export", out, material / "fp8", "--fp8")
    assert exported["step"] == 6 and exported["bytes"] < again["bytes"] / 2
    # and on from there, with FP8 rounding
    base = ("--from", material / "fp8", *common[4:], "--numerics", "fp8")
    tuned = _json(cli, "train", "run", material / "more", *base, *schedule, "--steps", 2)
    assert tuned["loss"] == pytest.approx(again["loss"], rel=0.2)


def test_user_errors(cli: click.Group, material: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # one of them is found only after the data were prepared in `o`
    runner = CliRunner()
    (material / "odd.jsonl").write_text('{"messages": [{"role": "user"}]}')
    for arguments, words in [
        (["train", "run", "o", "-d", material / "data.jsonl", "--steps", 1], "--config"),
        (["train", "run", "o", "-d", "nothing.jsonl", "--steps", 1, "--from", material], "nothing.jsonl"),
        (["train", "export", material, "o"], "no save"),
        (["train", "plot", material], "metrics"),
        (["train", "run", "o", "-d", material / "odd.jsonl", "--steps", 1, "--from", material], "odd.jsonl:1"),
        (["train", "run", "o", "-d", "x", "--steps", 1, "--from", material, "--decay-share", 2], "decay-share 2"),
        (["train", "run", "o", "-d", "x", "--steps", 1, "--from", material, "--lr", "nan"], "lr nan"),
        (["train", "run", "o", "-d", "x", "--steps", 1, "--from", material, "--device", "toaster"], "toaster"),
        (["train", "recipe", "bundled", "o", "--wordnet", material], "wordnet-base"),
    ]:
        result = runner.invoke(cli, list(map(str, arguments)))
        assert isinstance(result.exception, UserError), (arguments, result.output)
        assert words in str(result.exception)


def test_tokenizer_command(cli: click.Group, material: Path) -> None:
    facts = _json(cli, "train", "tokenizer", material / "tok", "-d", material / "data.jsonl", "--vocab-size", 300)
    assert facts["vocab_size"] == 300 and (material / "tok" / "tokenizer.model").is_file()


def test_against_needs_delta() -> None:
    assert evaluate._changes(("cache-dtype=bfloat16", "routing=a:k=v"), "delta") == {
        "cache_dtype": "bfloat16",
        "routing": "a:k=v",
    }
    for against, task in [((), "delta"), (("dtype=bfloat16",), "exact"), (("colour=red",), "delta")]:
        with pytest.raises(UserError):
            evaluate._changes(against, task)


def test_lora_flag_fills_the_quantization_slot() -> None:
    assert Loading("x", lora="/a").storage() == "lora:dir=/a"
    assert Loading("x", lora="/a", quantization="dense").storage() == "lora:dir=/a,base=dense"
    assert Loading("x", quantization="dense:a=b").storage() == "dense:a=b"
    with pytest.raises(UserError, match="--lora"):
        Loading("x", lora="/a", quantization="dense:a=b").storage()


def test_lora_run_and_merge(cli: click.Group, material: Path) -> None:
    common = (
        "--tokenizer",
        material,
        "-d",
        material / "data.jsonl",
        "--tokens",
        128,
        "--micro-batches",
        1,
        "--warmup",
        1,
    )
    config = ("--config", material / "config.json")
    base = _json(cli, "train", "run", material / "base", *config, *common, "--steps", 2, "--threads", 1)["checkpoint"]
    tuned = _json(cli, "train", "run", material / "lora", "--from", base, *common, "--steps", 3, "--lora", 2)
    merged = _json(cli, "train", "merge", base, tuned["checkpoint"], material / "merged")
    assert merged["merged"] == 4 * 5  # five matrices of attention in each layer and in the prediction module
    assert (material / "merged" / "tokenizer.json").is_file()

"""`dsv3rt generate`: the contract others script against."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_cases import PLAIN

from dsv3rt.cli.main import run
from dsv3rt.testing import preset, random_checkpoint

AsJson = Callable[..., dict[str, Any]]


class Stdin(io.TextIOWrapper):
    def __init__(self, data: bytes, *, tty: bool = False) -> None:
        super().__init__(io.BytesIO(data))
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty


def test_json_contract(tiny: Path, as_json: AsJson) -> None:
    found = as_json("generate", str(tiny), "-p", "hello", "-n", "6", "--temp", "0", "--ignore-eos", *PLAIN)
    assert {"text", "token_ids", "prompt_token_ids", "finish_reason", "timings", "speculation", "plan"} <= found.keys()
    assert "logprobs" not in found
    assert len(found["token_ids"]) == 6 and found["finish_reason"] == "length"
    assert len(found["prompt_token_ids"]) >= 5
    assert {"load_s", "compile_s", "ttft_s", "prompt_tokens", "prompt_tps", "gen_tokens", "gen_tps",
            "peak_rss_bytes"} <= found["timings"].keys()  # fmt: skip
    assert {"drafted", "accepted", "acceptance", "per_position"} <= found["speculation"].keys()
    assert {"attention", "routing", "quantization", "head"} <= found["plan"].keys()
    again = as_json("generate", str(tiny), "-p", "hello", "-n", "6", "--temp", "0", "--ignore-eos", *PLAIN)
    assert again["token_ids"] == found["token_ids"]


def test_ids_without_a_tokenizer(tiny_bare: Path, as_json: AsJson, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "-m", str(tiny_bare), "--prompt-ids", "1, 2 3", "-n", "4", "--temp", "0", *PLAIN]
    found = as_json(*arguments, "--logprobs", "3")
    assert found["prompt_token_ids"] == [1, 2, 3] and found["text"] == ""
    assert len(found["logprobs"]) == 4
    for token, entry in zip(found["token_ids"], found["logprobs"], strict=True):
        assert entry["token_id"] == token == entry["top"][0]["token_id"] and len(entry["top"]) == 3
        assert entry["logprob"] == entry["top"][0]["logprob"] <= 0
    assert run(arguments) == 0
    assert capfd.readouterr().out == ",".join(map(str, found["token_ids"])) + "\n"


def test_seeds(tiny: Path, as_json: AsJson) -> None:
    def ids(seed: int) -> list[int]:
        options = ("-n", "12", "--temp", "1.5", "--ignore-eos", "--seed", str(seed))
        found = as_json("generate", str(tiny), "--prompt-ids", "5", *options, *PLAIN)["token_ids"]
        assert isinstance(found, list)
        return found

    assert ids(1) == ids(1) != ids(2)


def test_drafting_changes_no_token(tmp_path: Path, as_json: AsJson) -> None:
    folder = random_checkpoint(tmp_path / "made", preset("tiny", layers=2, mtp=1))
    options = ("--prompt-ids", "7,8,9", "-n", "24", "--temp", "0", "--ignore-eos", "--compile", "off")
    plain = as_json("generate", str(folder), *options, "--head", "none")
    drafted = as_json("generate", str(folder), *options, "--head", "mtp", "--draft-tokens", "2")
    assert drafted["token_ids"] == plain["token_ids"]
    assert plain["speculation"]["drafted"] == 0 < drafted["speculation"]["drafted"]
    assert drafted["plan"]["head"]["name"] == "mtp" and plain["plan"]["head"] is None


def test_text_streams_to_stdout(
    tiny: Path, as_json: AsJson, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("-n", "5", "--temp", "0", "--ignore-eos", *PLAIN)
    monkeypatch.setattr(sys, "stdin", Stdin(b"hello\n"))
    assert run(["generate", str(tiny), "--timings", *options]) == 0
    out, err = capfd.readouterr()
    assert out == as_json("generate", str(tiny), "-p", "hello", *options)["text"] + "\n"
    assert "tok/s" in err.splitlines()[-1]


def test_stop_strings(tiny: Path, as_json: AsJson) -> None:
    options = ("-p", "hello", "-n", "20", "--temp", "0", "--ignore-eos", *PLAIN)
    text = as_json("generate", str(tiny), *options)["text"]
    stop = next(part for part in (text[at : at + 2] for at in range(2, len(text) - 2)) if "\ufffd" not in part)
    stopped = as_json("generate", str(tiny), *options, "--stop", stop)
    assert stopped["text"] == text[: text.index(stop)] and stopped["finish_reason"] == "stop"


def test_environment_and_flags(tiny: Path, as_json: AsJson, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV3RT_GENERATE_MAX_TOKENS", "3")
    options = ("-p", "x", "--temp", "0", "--ignore-eos", *PLAIN)
    assert len(as_json("generate", str(tiny), *options)["token_ids"]) == 3
    assert len(as_json("generate", str(tiny), *options, "-n", "2")["token_ids"]) == 2, "the flag wins"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-p", "a", "--prompt-ids", "1"], 2, "exclude each other"),
        (["--prompt-ids", "1,x"], 2, "not a list of numbers"),
        (["--prompt-ids", ""], 2, "the prompt is empty"),
        (["--prompt-ids", "1,512"], 2, "token id 512 is outside 0..511"),
        (["--prompt-ids", "-1"], 2, "outside 0..511"),
        (["--prompt-ids", ",".join(["1"] * 129)], 1, "the prompt has 129 tokens, the context 128"),
        (["-p", "a", "-c", "129"], 2, "outside 1..128"),
        (["-p", "a", "--logprobs", "2"], 2, "JSON only"),
        (["-p", "a", "--temp", "-1"], 2, "temperature"),
        (["-p", "a", "--routing", "bias_topc"], 1, "did you mean 'bias_topk'?"),
        (["-p", "a", "--dtype", "int3"], 2, "unknown dtype"),
        (["-p", "a", "--plugin", "/no/such.py"], 1, "/no/such.py"),
    ],
)
def test_refusals(tiny: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str) -> None:
    assert run(["generate", str(tiny), *arguments, *PLAIN]) == code
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and err.startswith("error: ") and words in err


def test_no_prompt_and_bad_stdin(
    tiny: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for stdin, words in [(Stdin(b"", tty=True), "no prompt is given"), (Stdin(b"\xff\xfe"), "not UTF-8")]:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert run(["generate", str(tiny), *PLAIN]) == 2
        assert words in capfd.readouterr().err
    monkeypatch.setattr(sys, "stdin", None)
    assert run(["generate", str(tiny), *PLAIN]) == 2 == run(["chat", str(tiny), *PLAIN])
    assert "no prompt is given" in (said := capfd.readouterr().err) and "no question is given" in said


def test_text_needs_a_tokenizer(tiny_bare: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", str(tiny_bare), "-p", "hello", *PLAIN]) == 1
    err = capfd.readouterr().err
    assert "tokenizer" in err and len(err.splitlines()) == 1


def test_ctrl_c_ends_the_answer_with_130(tiny: Path) -> None:
    """A real process, a real signal, in mid-answer."""
    code = "import sys; from dsv3rt.cli.main import run; sys.exit(run(sys.argv[1:]))"
    options = ["generate", str(tiny), "-p", "hello", "-n", "100000", "-c", "128", "--ignore-eos", *PLAIN]
    # a shell that starts this test in the background has Ctrl-C ignored, and children inherit that
    endless = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    endless += "import dsv3rt.runtime as r, time; s = r.Runtime._run\n"
    slow = (
        "def run_slowly(*a):\n    for chunk in s(*a):\n        yield chunk\n        time.sleep(0.3)\n"
        "r.Runtime._run = run_slowly\n"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", endless + slow + code, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert program.stdout is not None and program.stderr is not None
    assert program.stdout.read(1)
    time.sleep(0.1)
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=120)
    assert program.returncode == 130
    assert b"Traceback" not in err and out.endswith(b"\n")

"""Speed beside llama.cpp on the same weights and threads; prints one JSON object. Skips, and says why, when llama.cpp
is absent.

    python bench/compare_llama_cpp.py --preset small --layers 0 [--llama-cpp FOLDER] [--prompt-tokens 512] [--gen-tokens
    64]
    python bench/compare_llama_cpp.py --checkpoint checkpoints/dsv3rt-mini [--llama-cpp FOLDER]

llama.cpp comes from the PyPI source package `llama-cpp-python`: unpack it, then in its `vendor/llama.cpp`

    cmake -B build -DCMAKE_BUILD_TYPE=Release -DLLAMA_CURL=OFF && cmake --build build --target llama-bench

and give that folder. Its converter needs the Python package `gguf` (in `gguf-py` there) and torch. Random weights in
the official layout are made (bf16; FP8 by `dsv3rt quantize`, once with the head in 16 bits as official checkpoints have
it and once with `--head`, since Q8_0 quantizes the head too), converted to GGUF (bf16 and Q8_0), and both programs are
timed in turn, twice.

A checkpoint is timed as it is, once without and once with its prediction head, one draft a step; llama.cpp, whose speed
does not depend on weights and which has no such head, gets random ones of the same config in Q8_0.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DRAFTING = "checkpoint, drafting"
PAIRS = {"fp8": "q8_0", "fp8-head": "q8_0", "bf16": "bf16"}
"""Our checkpoint -> the GGUF file it is compared with."""


def main() -> int:
    options = arguments()
    folder = Path(options.llama_cpp) if options.llama_cpp else None
    bench = find_bench(folder)
    if bench is None or folder is None:
        print(json.dumps({"skipped": "no llama.cpp folder with a built llama-bench: see --help"}))
        return 0
    with contextlib.ExitStack() as stack:
        if options.work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            name = Path(options.checkpoint).resolve().name if options.checkpoint else options.preset
            work = Path(options.work) / f"{name}-{options.layers or 'all'}"
            work.mkdir(parents=True, exist_ok=True)
        checkpoints = make_checkpoints(work, options)
        models = convert(folder, checkpoints["bf16"], work)
        result = {} if options.prepare else compare(bench, checkpoints, models, options)
    print(json.dumps(result, indent=2))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--checkpoint", help="a folder in the official layout instead of random weights")
    parser.add_argument("--layers", type=int, default=0, help="cut the preset to so many layers; 0: all")
    parser.add_argument("--llama-cpp", default=os.environ.get("LLAMA_CPP"), help="folder of llama.cpp [env LLAMA_CPP]")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--gen-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", choices=list(PAIRS), help="one checkpoint instead of all")
    parser.add_argument("--work", help="keep the checkpoints here, and use those of an earlier run")
    parser.add_argument("--prepare", action="store_true", help="only make the checkpoints (with --work)")
    return parser.parse_args()


def find_bench(folder: Path | None) -> Path | None:
    found = shutil.which("llama-bench")
    places = [folder / "build" / "bin" / "llama-bench"] if folder else []
    places += [Path(found)] if found else []
    return next((place for place in places if place.is_file()), None)


def run(command: list[str], **more: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, **more)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def dsv3rt(*words: str, threads: int | None = None) -> dict[str, Any]:
    environment = dict(os.environ) | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    value: dict[str, Any] = json.loads(run([sys.executable, "-m", "dsv3rt", *words, "--json"], env=environment))
    return value


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A name to write to, which becomes `target` when all went well."""
    unfinished = target.with_name(f"unfinished-{target.name}")
    if unfinished.is_dir():
        shutil.rmtree(unfinished)
    yield unfinished
    unfinished.replace(target)


def make_checkpoints(work: Path, options: argparse.Namespace) -> dict[str, Path]:
    """Random weights in bf16, and the same quantized.

    llama.cpp knows models without query compression by their 27 layers; a model cut to another number gets one.
    """
    from dsv3rt.testing import preset, random_checkpoint

    bf16, fp8, head = work / "bf16", work / "fp8", work / "fp8-head"
    if options.checkpoint:
        config = json.loads((Path(options.checkpoint) / "config.json").read_text()) | {"num_nextn_predict_layers": 0}
    else:
        config = dict(preset(options.preset, layers=options.layers or None, mtp=0))
    if config.get("q_lora_rank") is None and config["num_hidden_layers"] != 27:
        config["q_lora_rank"] = config["hidden_size"] // 2
    if not bf16.exists():
        with replacing(bf16) as folder:
            random_checkpoint(folder, config, fp8=False, tokenizer=True)
    if options.checkpoint:
        return {"bf16": bf16} | dict.fromkeys(("checkpoint", DRAFTING), Path(options.checkpoint))
    if not fp8.exists():
        with replacing(fp8) as folder:
            dsv3rt("quantize", str(bf16), str(folder))
    if not head.exists():
        with replacing(head) as folder:
            dsv3rt("quantize", str(fp8), str(folder), "--head")
    return {"bf16": bf16, "fp8": fp8, "fp8-head": head}


def convert(folder: Path, checkpoint: Path, work: Path) -> dict[str, Path]:
    """GGUF files in bf16 and Q8_0, without a tokenizer: llama-bench needs none, and llama.cpp would refuse ours."""
    program = (
        "import sys; folder = sys.argv.pop(1); sys.path[:0] = [folder + '/gguf-py', folder]\n"
        "import runpy, conversion.base as base\n"
        "base.TextModel._set_vocab_gpt2 = base.TextModel._set_vocab_none\n"
        "runpy.run_path(folder + '/convert_hf_to_gguf.py', run_name='__main__')\n"
    )
    models = {}
    for kind in ("bf16", "q8_0"):
        models[kind] = work / f"{kind}.gguf"
        if models[kind].exists():
            continue
        with replacing(models[kind]) as target:
            words = [str(folder), str(checkpoint), "--outtype", kind, "--outfile", str(target)]
            run([sys.executable, "-c", program, *words])
    return models


def llama(bench: Path, model: Path, options: argparse.Namespace) -> dict[str, float]:
    """Without repacked weights where those end it: its AMX ones fail an assertion with latent attention."""
    words = [str(bench), "-m", str(model), "-t", str(options.threads), "-r", str(options.repeat), "-o", "json"]
    if subprocess.run([*words, "-p", "32", "-n", "0", "-r", "1"], capture_output=True).returncode:
        words += ["--repack", "0"]
    phases = {
        "prefill_tps": ["-p", str(options.prompt_tokens), "-n", "0"],
        # after the prompt, as ours: its default is an empty context
        "decode_tps": ["-p", "0", "-n", str(options.gen_tokens), "-d", str(options.prompt_tokens)],
    }
    times = {phase: float(json.loads(run([*words, *what]))[0]["avg_ts"]) for phase, what in phases.items()}
    return times | {"repacked": float("--repack" not in words)}


def ours(checkpoint: Path, drafts: int, options: argparse.Namespace) -> dict[str, Any]:
    words = ["bench", str(checkpoint), "--prompt-tokens", str(options.prompt_tokens)]
    words += ["--gen-tokens", str(options.gen_tokens), "--repeat", str(options.repeat)]
    words += ["--draft-tokens", str(drafts)] if drafts else ["--head", "none"]
    report = dsv3rt(*words, threads=options.threads)
    return {
        "prefill_tps": report["prefill_tps"]["median"],
        "decode_tps": report["decode_tps"]["median"],
        "bandwidth_fraction": report["bandwidth_fraction"],
        "machine_read_gbs": report["machine_read_gbs"],
        "acceptance": report["speculation"]["acceptance"],
    }


def compare(
    bench: Path, checkpoints: dict[str, Path], models: dict[str, Path], options: argparse.Namespace
) -> dict[str, Any]:
    """Both in turn, twice; the better of two for each, so that a disturbance hits neither alone."""
    result: dict[str, Any] = {"threads": options.threads}
    if options.checkpoint:
        result["checkpoint"] = options.checkpoint
        pairs = dict.fromkeys(("checkpoint", DRAFTING), "q8_0")
    else:
        result |= {"preset": options.preset, "layers": options.layers}
        pairs = PAIRS if options.only is None else {options.only: PAIRS[options.only]}
    for mine, theirs in pairs.items():
        rounds = [
            (ours(checkpoints[mine], int(mine == DRAFTING), options), llama(bench, models[theirs], options))
            for _ in range(2)
        ]
        best = {
            side: {phase: max(pair[index][phase] for pair in rounds) for phase in ("prefill_tps", "decode_tps")}
            for index, side in enumerate(("dsv3rt", "llama_cpp"))
        }
        ratios = {phase: best["dsv3rt"][phase] / best["llama_cpp"][phase] for phase in ("prefill_tps", "decode_tps")}
        best["llama_cpp"]["repacked"] = rounds[0][1]["repacked"]
        result[f"{mine} vs {theirs}"] = {**best, "ratio": ratios, "rounds": [pair[0] for pair in rounds]}
    return result


if __name__ == "__main__":
    sys.exit(main())

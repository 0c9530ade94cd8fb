"""Speed beside transformers on one bf16 checkpoint and as many threads; prints one JSON object. Skips, and says why,
when transformers is absent.

    python bench/compare_transformers.py CHECKPOINT [--prompt-tokens 512] [--gen-tokens 32] [--repeat 3] [--rounds 1]
    python bench/compare_transformers.py CHECKPOINT --compile [--dtype float32]

Each is timed in a process of its own, greedily, batch 1; the median of the repeats. In further rounds they take turns,
and the ratio is the median of those within a round: a machine's speed may change from one minute to the next. With
`--compile` its decode steps are compiled as whole graphs, with a static cache and the one form of its experts that
allows it for single tokens.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from typing import Any

PHASES = ("prefill_tps", "decode_tps")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--gen-tokens", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="torch.compile transformers' decode steps")
    parser.add_argument("--dtype", default="bfloat16", help="of transformers' weights")
    parser.add_argument("--only", action="store_true", help="time transformers alone, in this process")
    options = parser.parse_args()
    if importlib.util.find_spec("transformers") is None:
        print(json.dumps({"skipped": "transformers is not installed"}))
        return 0
    if options.only:
        print(json.dumps(theirs(options)))
        return 0
    words = ["bench", options.checkpoint, "--prompt-tokens", str(options.prompt_tokens), "--head", "none", "--json"]
    words += ["--gen-tokens", str(options.gen_tokens), "--repeat", str(options.repeat)]
    rounds = []
    for _ in range(options.rounds):
        them = run([sys.executable, __file__, *sys.argv[1:], "--only"])
        report = run([sys.executable, "-m", "dsv3rt", *words])
        us = {phase: report[phase]["median"] for phase in PHASES}
        ratio = {phase: us[phase] / them[phase] for phase in PHASES}
        rounds.append({"dsv3rt": us, "transformers": them, "ratio": ratio})
    middle = {
        what: {phase: statistics.median(each[what][phase] for each in rounds) for phase in PHASES} for what in rounds[0]
    }
    print(json.dumps(middle if len(rounds) == 1 else {**middle, "rounds": rounds}, indent=2))
    return 0


def run(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def theirs(options: argparse.Namespace) -> dict[str, float]:
    """Prefill and decoding in tokens/s, stepped by hand: `generate` would add its own cost to each token."""
    import torch
    from transformers import AutoModelForCausalLM, StaticCache

    experts = {"experts_implementation": "batched_mm"} if options.compile else {}
    dtype = getattr(torch, options.dtype)
    model = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=dtype, **experts).eval()
    step = torch.compile(model.forward, fullgraph=True, dynamic=False) if options.compile else model
    cache = StaticCache(model.config, options.prompt_tokens + options.gen_tokens) if options.compile else None
    prefill, decode = [], []
    with torch.inference_mode():
        for _ in range(options.repeat + 1):  # the first one warms up
            ids = torch.randint(0, model.config.vocab_size, (1, options.prompt_tokens))
            positions = torch.arange(options.prompt_tokens + options.gen_tokens)[None]
            if cache is not None:
                cache.reset()
            begin = time.perf_counter()
            out = model(
                ids, past_key_values=cache, position_ids=positions[:, : ids.shape[1]], use_cache=True, logits_to_keep=1
            )
            first = time.perf_counter()
            for position_11 in positions[:, ids.shape[1] :].split(1, dim=1):
                token = out.logits[:, -1:].argmax(-1)
                out = step(token, past_key_values=out.past_key_values, position_ids=position_11, use_cache=True)
            prefill.append(options.prompt_tokens / (first - begin))
            decode.append(options.gen_tokens / (time.perf_counter() - first))
    return {"prefill_tps": statistics.median(prefill[1:]), "decode_tps": statistics.median(decode[1:])}


if __name__ == "__main__":
    sys.exit(main())

"""`dsv3rt bench`: prefill and decoding speed, against what the machine's memory allows."""

from __future__ import annotations

import dataclasses
import random
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from dsv3rt.cli.options import BUNDLED, Loading, draft_tokens_option, loading_options
from dsv3rt.cli.output import emit_json, json_option, size
from dsv3rt.errors import ContextError

if TYPE_CHECKING:
    from dsv3rt.compile.program import Counters
    from dsv3rt.generate.results import Generation
    from dsv3rt.runtime import Runtime

_WARM_TOKENS = 8
_MOST_WARM_RUNS = 4
"""The first run asks for graphs; a part that none can be made for runs uncompiled for ever."""


@click.command("bench")
@loading_options(default=BUNDLED)
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Prompt length.")
@click.option("--gen-tokens", type=click.IntRange(min=2), default=64, show_default=True, help="Tokens to generate.")
@click.option("--repeat", type=click.IntRange(min=1), default=3, show_default=True, help="Measured runs.")
@draft_tokens_option
@click.option("--seed", default=0, show_default=True, help="Of the random prompts.")
@json_option
def command(
    loading: Loading,
    prompt_tokens: int,
    gen_tokens: int,
    repeat: int,
    draft_tokens: int | str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Measure prefill and decoding of CHECKPOINT on random prompts: warmed up, compiled, greedy, batch 1.

    Loading and compiling are timed apart. The bandwidth fraction is what decoding reads a second, in weights, over
    what this machine can read, measured in the same run.

    \b
    dsv3rt bench FOLDER --prompt-tokens 512 --gen-tokens 128 --repeat 5
    dsv3rt bench FOLDER --head none --json
    """
    if loading.compile == "auto":
        loading = dataclasses.replace(loading, compile="wait")  # the same graphs, made as fast as the machine can
    runtime = loading.load()
    total = prompt_tokens + gen_tokens
    if total > runtime.plan.max_context:
        raise ContextError(
            f"{total} tokens do not fit the context of {runtime.plan.max_context}", fix="measure fewer tokens"
        )
    options: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
    if draft_tokens is not None:
        options["draft_tokens"] = draft_tokens
    draw = random.Random(seed)

    def once(tokens: int) -> Generation:
        prompt = [draw.randrange(runtime.config.vocab_size) for _ in range(prompt_tokens)]
        return runtime.generate(prompt, max_tokens=tokens, **options)

    cold = once(min(_WARM_TOKENS, gen_tokens))
    _warm_up(runtime, lambda: once(min(_WARM_TOKENS, gen_tokens)))
    before = dataclasses.replace(runtime.engine.counters)
    runs = [once(gen_tokens) for _ in range(repeat)]
    facts = _report(runtime, cold, runs, before)
    if as_json:
        emit_json(facts)
    else:
        _print(facts)


def _warm_up(runtime: Runtime, run: Callable[[], object]) -> None:
    """Run until no graph is left to wait for: whichever the mode, nothing is compiled or packed while measuring."""
    counters = runtime.engine.counters
    for _ in range(_MOST_WARM_RUNS):
        runtime.wait()
        uncompiled, graphs = counters.uncompiled, len(counters.graphs)
        run()
        if (counters.uncompiled, len(counters.graphs)) == (uncompiled, graphs):
            return


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def _report(runtime: Runtime, cold: Generation, runs: Sequence[Generation], before: Counters) -> dict[str, Any]:
    from dsv3rt.native import read_bandwidth_gbs
    from dsv3rt.weights.sizes import Sizes

    timings = [run.timings for run in runs]
    calls = runtime.engine.counters
    read = Sizes.of(runtime.config).read_bytes_per_token - runtime.saved_bytes_per_token
    peak = max(timing.peak_rss_bytes for timing in timings)  # before the bandwidth's own buffer
    gbs = read_bandwidth_gbs()
    drafted = sum(run.speculation.drafted for run in runs)
    accepted = sum(run.speculation.accepted for run in runs)
    return {
        "checkpoint": str(runtime.folder),
        "prompt_tokens": timings[0].prompt_tokens,
        "gen_tokens": timings[0].gen_tokens,
        "repeat": len(runs),
        "prefill_tps": _spread([timing.prompt_tps for timing in timings]),
        "decode_tps": _spread([timing.gen_tps for timing in timings]),
        "ttft_s": _spread([timing.ttft_s for timing in timings]),
        "load_s": runtime.load_s,
        "compile_s": runtime.engine.compile_s,
        "first_run_ttft_s": cold.timings.ttft_s,
        "calls": {
            "compiled": calls.compiled - before.compiled,
            "uncompiled": calls.uncompiled - before.uncompiled,
        },
        "weight_bytes_per_token": read,
        "machine_read_gbs": gbs,
        "bandwidth_fraction": _spread([read * timing.gen_tps / (gbs * 1e9) for timing in timings]),
        "peak_rss_bytes": peak,
        "speculation": {
            "drafted": drafted,
            "accepted": accepted,
            "acceptance": accepted / drafted if drafted else 0.0,
        },
        "plan": dict(runs[0].plan),
    }


def _print(facts: dict[str, Any]) -> None:
    def line(name: str, spread: dict[str, float], unit: str, digits: int = 1) -> None:
        low, median, high = (f"{spread[key]:.{digits}f}" for key in ("min", "median", "max"))
        click.echo(f"{name:<12}{median:>10} {unit:<10} ({low} to {high})")

    click.echo(
        f"{facts['checkpoint']}: {facts['prompt_tokens']} tokens in, {facts['gen_tokens']} out, {facts['repeat']} times"
    )
    line("prefill", facts["prefill_tps"], "tokens/s")
    line("decode", facts["decode_tps"], "tokens/s")
    line("first token", facts["ttft_s"], "s", 3)
    line("bandwidth", {key: 100 * value for key, value in facts["bandwidth_fraction"].items()}, "%")
    click.echo(
        f"{size(facts['weight_bytes_per_token'])} read a token, this machine reads {facts['machine_read_gbs']:.1f} GB/s"
    )
    click.echo(
        f"load {facts['load_s']:.2f} s, compile {facts['compile_s']:.2f} s, peak memory {size(facts['peak_rss_bytes'])}"
    )
    if facts["calls"]["uncompiled"]:
        click.echo("{uncompiled} calls ran uncompiled beside {compiled} compiled ones".format_map(facts["calls"]))
    if facts["speculation"]["drafted"]:
        click.echo(f"drafts: {facts['speculation']['acceptance']:.0%} of {facts['speculation']['drafted']} accepted")

"""`dsv3rt quantize`: rewrite a checkpoint in the official FP8 layout, or back in bf16."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import click

from dsv3rt.cli.output import emit_json, json_option, progress_bar, size


@click.command("quantize")
@click.argument("source", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--to", type=click.Choice(["fp8", "bf16"]), default="fp8", show_default=True, help="Storage format.")
@click.option("--ue8m0", is_flag=True, help="Scales rounded up to powers of two, as in V3.1.")
@click.option("--head", is_flag=True, help="The output head too, which official checkpoints keep in 16 bits.")
@json_option
def command(source: Path, out: Path, to: str, ue8m0: bool, head: bool, as_json: bool) -> None:
    """Write the checkpoint SOURCE to the new folder OUT, in the official FP8 layout or in bf16.

    Works shard by shard: memory is bounded by the largest matrix, not by the checkpoint. --head also takes a checkpoint
    that is FP8 already: the head is read for every token, and in small models a good part of what is read. Other tools
    may not know such a head (config.json says `"lm_head": true` in its quantization_config).

    \b
    dsv3rt quantize ~/models/moonlight ~/models/moonlight-fp8
    dsv3rt quantize ~/models/v3 ~/models/v3-bf16 --to bf16
    dsv3rt quantize ~/models/v3 ~/models/v3-fp8-head --head
    """
    from dsv3rt_fp8.convert import convert

    if (ue8m0 or head) and to == "bf16":
        raise click.UsageError(f"{'--ue8m0' if ue8m0 else '--head'} goes with --to fp8")
    begin = time.perf_counter()
    with progress_bar() as progress:
        report = convert(source, out, "fp8" if to == "fp8" else "bf16", ue8m0=ue8m0, head=head, progress=progress)
    seconds = time.perf_counter() - begin
    if as_json:
        emit_json({"path": str(out), "to": to, "seconds": seconds, **asdict(report)})
    else:
        click.echo(
            f"{report.matrices} matrices, {size(report.bytes_before)} -> {size(report.bytes_after)} "
            f"in {seconds:.1f} s: {out}",
            err=True,
        )

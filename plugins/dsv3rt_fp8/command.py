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
@json_option
def command(source: Path, out: Path, to: str, ue8m0: bool, as_json: bool) -> None:
    """Write the checkpoint SOURCE to the new folder OUT, in the official FP8 layout or in bf16.

    Works shard by shard: memory is bounded by the largest matrix, not by the checkpoint.

    \b
    dsv3rt quantize ~/models/moonlight ~/models/moonlight-fp8
    dsv3rt quantize ~/models/v3 ~/models/v3-bf16 --to bf16
    """
    from dsv3rt_fp8.convert import convert

    if ue8m0 and to == "bf16":
        raise click.UsageError("--ue8m0 goes with --to fp8")
    begin = time.perf_counter()
    with progress_bar() as progress:
        report = convert(source, out, "fp8" if to == "fp8" else "bf16", ue8m0=ue8m0, progress=progress)
    seconds = time.perf_counter() - begin
    if as_json:
        emit_json({"path": str(out), "to": to, "seconds": seconds, **asdict(report)})
    else:
        click.echo(
            f"{report.matrices} matrices, {size(report.bytes_before)} -> {size(report.bytes_after)} "
            f"in {seconds:.1f} s: {out}",
            err=True,
        )

"""`dsv3rt synth`: a checkpoint of random weights in the official layout."""

from __future__ import annotations

import re
from pathlib import Path

import click

from dsv3rt.cli.interrupt import ctrl_c_leaves
from dsv3rt.cli.output import emit_json, json_option, progress_bar, size

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class Bytes(click.ParamType[int]):
    """A size such as 500M, 5GB or 1000000."""

    name = "SIZE"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", str(value).strip().upper())
        count = int(float(match[1]) * _UNITS[match[2]]) if match else 0
        if count < 1:
            self.fail(f"{value!r} is not a size: write 500M or 5GB", param, ctx)
        return count


@click.command("synth")
@click.argument("preset")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--fp8/--bf16", default=None, help="Block FP8 or bf16 [default: as the official checkpoint].")
@click.option("--seed", default=0, show_default=True, help="Another seed, other weights.")
@click.option("--layers", type=int, help="So many layers instead of the preset's.")
@click.option("--mtp", type=int, help="So many MTP modules instead of the preset's.")
@click.option("--max-shard-size", type=Bytes(), default="5GB", show_default=True, help="Split files at this size.")
@click.option("--tokenizer/--no-tokenizer", default=False, help="Add a byte-level tokenizer and a chat template.")
@click.option("--init", "initialiser", metavar="NAME", help="A plugin's weight initialiser instead of random values.")
@json_option
def command(
    preset: str,
    out: Path,
    fp8: bool | None,
    seed: int,
    layers: int | None,
    mtp: int | None,
    max_shard_size: int,
    tokenizer: bool,
    initialiser: str | None,
    as_json: bool,
) -> None:
    """Write random weights in the official layout to the new folder OUT, to measure a model before downloading it.

    \b
    PRESET is one of
      tiny                seconds to make; has everything the family has
      small               0.5B parameters
      moonlight-16b-a3b   v2-lite   glm-4.7-flash   v3   kimi-k2: whole models
      v3-slice   kimi-k2-slice: their first dense and first MoE layer, true dimensions

    \b
    dsv3rt synth tiny /tmp/tiny --tokenizer
    dsv3rt synth moonlight-16b-a3b /data/moonlight --fp8
    """
    with ctrl_c_leaves():
        from dsv3rt.testing import preset as find_preset
        from dsv3rt.testing import random_checkpoint
        from dsv3rt.weights import Checkpoint

    config = find_preset(preset, layers=layers, mtp=mtp)
    fill = None
    if initialiser is not None:
        from dsv3rt.plugin_manager import discover

        fill = discover().find("initialiser", initialiser).builder
    with progress_bar() as progress:
        folder = random_checkpoint(
            out,
            config,
            seed=seed,
            fp8=fp8,
            max_shard_bytes=max_shard_size,
            tokenizer=tokenizer,
            initialiser=fill,
            progress=progress,
        )
    source = Checkpoint(folder)
    facts = {
        "folder": str(folder),
        "preset": preset,
        "bytes": source.total_bytes,
        "files": len(source.layout.files),
        "tensors": len(source.names()),
    }
    if as_json:
        emit_json(facts)
    else:
        click.echo(f"{folder}: {preset}, {size(source.total_bytes)} in {len(source.layout.files)} files")

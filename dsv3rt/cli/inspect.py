"""`dsv3rt inspect`: what a checkpoint is, what fills each slot, whether it fits and what it costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsv3rt.cli.interrupt import ctrl_c_leaves
from dsv3rt.cli.options import BUNDLED, Loading, loading_options
from dsv3rt.cli.output import emit_json, json_option, size
from dsv3rt.errors import CheckpointError, PluginError, UserError

if TYPE_CHECKING:
    from rich.table import Table

    from dsv3rt.config import ModelConfig
    from dsv3rt.weights.layout import Layout
    from dsv3rt.weights.sizes import Sizes

_OVERHEAD = 1 << 30
"""Bytes for Python, torch, activations and scratch."""
_BANDWIDTH_FRACTION = 0.75
"""Share of the machine's read bandwidth that decoding reaches on large models (see bench/)."""
_SECONDS_PER_LAYER = 40e-6
"""Of a step, beside reading weights: attention, norms, dispatch. It decides the speed of small models."""


@click.command("inspect")
@loading_options(default=BUNDLED)
@click.option("--bandwidth/--no-bandwidth", default=True, help="Measure this machine's read bandwidth (0.3 s).")
@json_option
def command(loading: Loading, bandwidth: bool, as_json: bool) -> None:
    """Say what CHECKPOINT is, whether it fits and what it will cost: from config and index, reading no weights.

    A folder with nothing but config.json will do, and so will org/name, of which no more than that is fetched: one can
    ask before downloading. A preset of `dsv3rt synth` will do too. Memory is planned for -c/--ctx-size tokens, 8192
    if not given.

    \b
    dsv3rt inspect /data/moonlight
    dsv3rt inspect zai-org/GLM-4.7-Flash
    dsv3rt inspect v3 --ctx-size 32768 --json
    """
    with ctrl_c_leaves():
        facts = gather(loading, measure=bandwidth)
    if as_json:
        emit_json(facts)
    else:
        from rich.console import Console

        Console(highlight=False).print(_table(facts))


def gather(loading: Loading, *, measure: bool) -> dict[str, Any]:
    """Everything `inspect` reports, JSON-able. Raises UserError."""
    from dsv3rt.weights.sizes import Sizes

    config, folder = _config(loading)
    sizes = Sizes.of(config)
    context = loading.ctx_size or min(8192, config.max_position_embeddings)
    plan, cache_bytes, share = _plan(loading, config, sizes)
    read = sizes.read_bytes_per_token - round((1 - share) * sizes.bf16_read_bytes_per_token)
    packed = round(share * sizes.bf16_bytes) if share < 1 else 0
    return {
        "checkpoint": str(folder) if folder else loading.checkpoint,
        "family": config.family.title,
        "model_type": config.model_type,
        "format": "fp8 128x128 blocks" if config.quantization else config.torch_dtype,
        "parameters": sizes.parameters,
        "active_parameters": sizes.active_parameters,
        "mtp_modules": config.num_nextn_predict_layers,
        "mtp_parameters": sizes.mtp_parameters,
        "layers": {"dense": sizes.dense_layers, "moe": sizes.moe_layers},
        "experts": {
            "routed": config.n_routed_experts,
            "chosen": config.num_experts_per_tok,
            "shared": config.n_shared_experts,
            "groups": config.n_group,
        },
        "max_context": config.max_position_embeddings,
        "disk_bytes": sizes.disk_bytes,
        "weight_bytes_per_token": read,
        "cache_bytes_per_token": cache_bytes or sizes.cache_bytes_per_token,
        "files": _files(folder, config) if folder else None,
        "tokenizer": _tokenizer(folder) if folder else None,
        "generation_defaults": _generation(folder) if folder else None,
        "plan": plan,
        "ignored_config_keys": list(config.ignored_keys),
        **_cost(sizes, read, packed, cache_bytes or sizes.cache_bytes_per_token, context, measure=measure),
    }


def _config(loading: Loading) -> tuple[ModelConfig, Path | None]:
    from dsv3rt.config import ModelConfig
    from dsv3rt.testing.presets import PRESETS

    try:
        folder = loading.folder()
    except CheckpointError as missing:
        if loading.checkpoint in PRESETS:
            return ModelConfig.from_dict(PRESETS[loading.checkpoint]), None
        folder = _from_hub(loading.checkpoint, missing)
    return ModelConfig.from_folder(folder), folder


def _from_hub(name: str, missing: CheckpointError) -> Path:
    """Config, index and tokenizer of `org/name`, a few MB, so that one can ask before downloading the rest."""
    from dsv3rt.cli.download import fetch
    from dsv3rt.weights.locate import REPO_ID

    if not REPO_ID.fullmatch(name):
        raise missing
    try:
        return Path(fetch(name, config_only=True)["folder"])
    except UserError as error:
        raise CheckpointError(f"{missing.what}; {error.what}", fix=missing.fix) from None


def _plan(loading: Loading, config: ModelConfig, sizes: Sizes) -> tuple[dict[str, Any], int | None, float]:
    """(what fills each slot, the attention's own cache bytes a token, the share of bfloat16 matrices that decoding
    reads, see `PacksWeights`).

    Without the plugins that the family needs by default it says so, and the rest can still be told; what was asked
    for and cannot be had is an error.
    """
    from dsv3rt.assembly import build, resolve_plan
    from dsv3rt.interfaces import packing_of
    from dsv3rt.plugin_manager import discover

    slots = {slot: getattr(loading, slot) for slot in ("attention", "routing", "head")}
    slots["quantization"] = loading.storage()
    try:
        plugins = discover(loading.plugin)
        plan = resolve_plan(
            config,
            plugins,
            **slots,
            device=loading.device,
            dtype=loading.dtype,
            cache_dtype=loading.cache_dtype,
            max_context=loading.ctx_size,
        )
        # attention alone says what a token takes: thousands of experts need not be built to ask it
        dense = replace(config, n_routed_experts=0, num_nextn_predict_layers=0)
        bare = replace(plan, config=dense, routing=None, head=None)
        built = build(bare, plugins)
        kernels = built.quantization.describe(plan.device)
        share = packing_of(built.quantization).expected_share(sizes.weight_bytes, sizes.bf16_bytes, plan.device)
        return {**plan.as_dict(), "kernels": kernels}, built.decoder.cache_bytes_per_token, share
    except PluginError as error:
        if loading.plugin or any(slots.values()):
            raise
        return {"error": str(error)}, None, 1.0


def _files(folder: Path, config: ModelConfig) -> dict[str, Any]:
    """What is there. Raises CheckpointError when a file is broken, not when it is yet to come."""
    from dsv3rt.weights.layout import read_layout
    from dsv3rt.weights.official import official_tensors
    from dsv3rt.weights.source import Checkpoint

    try:
        layout: Layout = read_layout(folder)
    except CheckpointError as error:
        return {"present": 0, "expected": None, "complete": False, "why": str(error)}
    present = [file for file in layout.files if file.is_file()]
    facts: dict[str, Any] = {
        "present": len(present),
        "expected": len(layout.files),
        "bytes": sum(file.stat().st_size for file in present),
        "indexed_bytes": layout.total_size,
    }
    names = set(layout.weight_map or ()) if layout.missing else set(Checkpoint(folder).names())
    wanted = {tensor.name for tensor in official_tensors(config) if not tensor.copy}
    wanted |= {f"{tensor.name}_scale_inv" for tensor in official_tensors(config) if tensor.scale_shape(config)}
    lacking = sorted(wanted - names) if names else []
    facts |= {"missing_tensors": len(lacking), "first_missing": lacking[0] if lacking else None}
    facts["complete"] = not layout.missing and not lacking
    return facts


def _tokenizer(folder: Path) -> dict[str, Any]:
    kinds = ("tokenizer.json", "tiktoken.model", "tokenizer.model")
    found = next((name for name in kinds if (folder / name).is_file()), None)
    described = _json(folder / "tokenizer_config.json")
    template = "chat_template" in described or (folder / "chat_template.jinja").is_file()
    return {"file": found, "chat_template": template}


def _generation(folder: Path) -> dict[str, Any]:
    raw = _json(folder / "generation_config.json")
    return {key: value for key, value in raw.items() if not key.startswith("_") and key != "transformers_version"}


def _json(path: Path) -> dict[str, Any]:
    """A JSON object that may be absent. Raises CheckpointError when it is unreadable."""
    import json

    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}", fix="download it again") from None
    return raw if isinstance(raw, dict) else {}


def _cost(sizes: Sizes, read: int, packed: int, cache_bytes: int, context: int, *, measure: bool) -> dict[str, Any]:
    """Memory against what this machine has, and speed against what it reads."""
    import torch

    from dsv3rt.weights.prefault import available_memory

    need = sizes.weight_bytes + cache_bytes * context + _OVERHEAD
    memory = available_memory()
    gpu = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    facts: dict[str, Any] = {
        "context": context,
        "memory": {
            "weights": sizes.weight_bytes,
            "mtp_weights": sizes.mtp_bytes,
            "packed": packed,
            "cache": cache_bytes * context,
            "overhead": _OVERHEAD,
            "need": need,
            "available": memory,
            "fits": need <= memory,
            "gpu_available": gpu,
            "gpu_fits": None if gpu is None else need <= gpu,
        },
    }
    if measure:
        from dsv3rt.native import read_bandwidth_gbs

        gbs = read_bandwidth_gbs()
        limit = gbs * 1e9 / read
        layers = sizes.dense_layers + sizes.moe_layers
        facts |= {
            "machine_read_gbs": gbs,
            "limit_tps": limit,
            "predicted_tps": 1 / (1 / (limit * _BANDWIDTH_FRACTION) + layers * _SECONDS_PER_LAYER)
            if need <= memory
            else None,
        }
    return facts


def _billions(count: int) -> str:
    return f"{count / 1e9:,.2f}B" if count >= 1e8 else f"{count / 1e6:,.2f}M"


def _few_digits(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _table(facts: dict[str, Any]) -> Table:
    """The same for people."""
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    experts, layers, memory, plan = facts["experts"], facts["layers"], facts["memory"], facts["plan"]
    table.add_row("checkpoint", facts["checkpoint"])
    table.add_row("family", f"{facts['family']} ({facts['model_type']}), {facts['format']}")
    table.add_row(
        "parameters", f"{_billions(facts['parameters'])}, {_billions(facts['active_parameters'])} active in a token"
    )
    moe = f", {experts['chosen']} of {experts['routed']} experts + {experts['shared']} shared" if layers["moe"] else ""
    table.add_row("layers", f"{layers['dense']} dense, {layers['moe']} MoE{moe}")
    if facts["mtp_modules"]:
        table.add_row("MTP modules", f"{facts['mtp_modules']} ({_billions(facts['mtp_parameters'])})")
    for slot in ("attention", "routing", "quantization", "head"):
        choice = plan.get(slot)
        table.add_row(slot, f"{choice['name']}  from {choice['owner']}" if choice else plan.get("error", "none"))
    if "kernels" in plan:
        table.add_row("kernels", plan["kernels"])
    table.add_row("on disk", size(facts["disk_bytes"]) + _files_text(facts["files"]))
    if facts["tokenizer"] is not None:
        template = "with" if facts["tokenizer"]["chat_template"] else "without"
        table.add_row("tokenizer", f"{facts['tokenizer']['file'] or 'none'}, {template} a chat template")
    table.add_row("read a token", size(facts["weight_bytes_per_token"]))
    table.add_row("cache a token", f"{facts['cache_bytes_per_token']:,} bytes")
    table.add_row(
        "memory",
        f"{size(memory['need'])} at {facts['context']:,} tokens of context (weights {size(memory['weights'])}, "
        f"cache {size(memory['cache'])}); {size(memory['available'])} free: "
        + ("fits" if memory["fits"] else "does not fit, it would run from disk")
        + (f", and {size(memory['packed'])} more of packed copies" if memory["packed"] else ""),
    )
    if memory["gpu_available"] is not None:
        verdict = "fits" if memory["gpu_fits"] else "does not fit"
        table.add_row("GPU", f"{size(memory['gpu_available'])} free: {verdict}")
    if facts["generation_defaults"]:
        table.add_row("defaults", ", ".join(f"{key} {value}" for key, value in facts["generation_defaults"].items()))
    if "limit_tps" in facts:
        guess = facts["predicted_tps"]
        table.add_row(
            "speed",
            (f"about {_few_digits(guess)} tokens/s, " if guess else "")
            + f"at most {_few_digits(facts['limit_tps'])}: this machine reads {facts['machine_read_gbs']:.3g} GB/s",
        )
    return table


def _files_text(files: dict[str, Any] | None) -> str:
    if files is None or files["complete"]:
        return f" in {files['present']} files" if files else ""
    if files["expected"] is None:
        return "; no weights here yet"
    lacking = f", {files['missing_tensors']} tensors missing" if files["missing_tensors"] else ""
    return f"; {files['present']} of {files['expected']} files are here{lacking}"

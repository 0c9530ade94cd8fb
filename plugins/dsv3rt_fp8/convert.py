"""Rewrite a checkpoint from one storage format to the other, shard by shard in bounded memory.

To FP8: the matrices that official FP8 checkpoints store so (attention, feed-forward networks, experts), in their
layout; embedding, head, norms, router and `eh_proj` stay as they are. Back: every FP8 matrix to bfloat16.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dsv3rt.config import ModelConfig
from dsv3rt.errors import CheckpointError, ConfigError
from dsv3rt.testing.presets import FP8_CONFIG
from dsv3rt.testing.writer import Planned, atomic_folder, split, write_shards
from dsv3rt.weights import Checkpoint
from dsv3rt.weights.official import QUANTIZED, official_tensors
from dsv3rt_fp8 import numerics

Target = Literal["fp8", "bf16"]
_SCALE = "_scale_inv"
_E4M3 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Conversion:
    """What was done."""

    matrices: int
    """Matrices whose format changed."""
    tensors: int
    """Tensors written."""
    bytes_before: int
    bytes_after: int


def convert(
    source: Path,
    target: Path,
    to: Target,
    *,
    ue8m0: bool = False,
    max_shard_bytes: int = 5 * 10**9,
    progress: Callable[[str, int, int], None] | None = None,
) -> Conversion:
    """Write the checkpoint `source` to the new folder `target` in format `to`, with the files that go with it.

    `ue8m0` rounds scales up to powers of two. Memory: a few times the largest matrix. Raises ConfigError and
    CheckpointError (already in that format, exists already, disk full, NaN in a weight).
    """
    config = ModelConfig.from_folder(source)
    if (config.quantization is not None) == (to == "fp8"):
        raise ConfigError(f"{source} is stored as {to} already", fix="nothing to do")
    raw: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    raw.pop("quantization_config", None)
    if to == "fp8":
        raw["quantization_config"] = dict(FP8_CONFIG) | ({"scale_fmt": "ue8m0"} if ue8m0 else {})
    else:
        raw["torch_dtype"] = "bfloat16"
    checkpoint = Checkpoint(source)
    plan = _plan_fp8(checkpoint, config) if to == "fp8" else _plan_bf16(checkpoint)
    total = sum(item.nbytes for item in plan)
    with atomic_folder(target, total) as scratch:
        done = 0
        for item, stream in write_shards(scratch, split(plan, max_shard_bytes)):
            stream.write(_bytes(_values(checkpoint, item, ue8m0)))
            done += item.nbytes
            if progress:
                progress(f"writing {to}", done, total)
        _copy_the_rest(source, scratch)
        (scratch / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    changed = sum(item.dtype != _dtype(checkpoint, item.name) for item in plan if item.name in checkpoint)
    return Conversion(changed, len(plan), checkpoint.total_bytes, total)


def _dtype(checkpoint: Checkpoint, name: str) -> torch.dtype:
    return checkpoint.infos[name].dtype


def _plan_fp8(checkpoint: Checkpoint, config: ModelConfig) -> list[Planned]:
    kinds = {tensor.name: tensor.kind for tensor in official_tensors(config)}
    plan: list[Planned] = []
    for name, info in checkpoint.infos.items():
        shape = tuple(info.shape)
        if kinds.get(name) in QUANTIZED and len(shape) == 2 and info.dtype != _E4M3:
            plan += [Planned(name, shape, _E4M3), Planned(name + _SCALE, numerics.grid(*shape), torch.float32)]
        else:
            plan.append(Planned(name, shape, info.dtype))
    return plan


def _plan_bf16(checkpoint: Checkpoint) -> list[Planned]:
    plan: list[Planned] = []
    for name, info in checkpoint.infos.items():
        if name.endswith(_SCALE) and name.removesuffix(_SCALE) in checkpoint:
            continue
        if info.dtype == _E4M3 and name + _SCALE not in checkpoint:
            raise CheckpointError(f"{name} is FP8 but {name}{_SCALE} is missing", fix="download the checkpoint again")
        plan.append(Planned(name, tuple(info.shape), torch.bfloat16 if info.dtype == _E4M3 else info.dtype))
    return plan


def _values(checkpoint: Checkpoint, item: Planned, ue8m0: bool) -> Tensor:
    """What to write for `item`. A matrix is read again for its scales: files are cached, memory stays small."""
    weight = item.name if item.name in checkpoint else item.name.removesuffix(_SCALE)
    stored = checkpoint.get(weight)
    if item.dtype == stored.dtype and weight == item.name:
        return stored
    if stored.dtype == _E4M3:
        scale = checkpoint.get(weight + _SCALE, shape=numerics.grid(*stored.shape))
        return numerics.dequantize(stored, scale, torch.bfloat16)
    try:
        codes, scale = numerics.quantize_weight(stored, ue8m0=ue8m0)
    except ValueError as error:
        raise CheckpointError(f"{weight}: {error}", fix="download the checkpoint again") from None
    return codes if weight == item.name else scale


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _copy_the_rest(source: Path, target: Path) -> None:
    """Tokenizer, chat template, code, licence: everything but weights and config.json."""
    for path in source.iterdir():
        weights = ".safetensors" in path.name or path.suffix in (".bin", ".pt", ".pth", ".gguf")
        if path.is_file() and not weights and not path.name.startswith(".") and path.name != "config.json":
            shutil.copyfile(path, target / path.name)

"""Rewrite a checkpoint from one storage format to the other, shard by shard in bounded memory.

To FP8: the matrices that official FP8 checkpoints store so (attention, feed-forward networks, experts), in their
layout; embedding, norms, router and `eh_proj` stay as they are, and so does the head unless it is asked for. Back:
every FP8 matrix to bfloat16.
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
from dsv3rt.weights.official import official_tensors
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
    head: bool = False,
    max_shard_bytes: int = 5 * 10**9,
    progress: Callable[[str, int, int], None] | None = None,
) -> Conversion:
    """Write the checkpoint `source` to the new folder `target` in format `to`, with the files that go with it.

    `ue8m0` rounds scales up to powers of two. `head` quantizes the output head as well (of an FP8 checkpoint, that
    alone). Memory: a few times the largest matrix. Raises ConfigError and CheckpointError (already in that format,
    exists already, disk full, NaN in a weight).
    """
    config = ModelConfig.from_folder(source)
    stored = config.quantization
    if (stored is not None and (stored.lm_head or not head)) if to == "fp8" else stored is None:
        raise ConfigError(f"{source} is stored as {to} already", fix="nothing to do")
    if head and config.tie_word_embeddings:
        raise ConfigError(f"{source} has no head of its own: it is the embedding", fix="leave the head as it is")
    raw: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if to == "bf16":
        raw.pop("quantization_config", None)
        raw["torch_dtype"] = "bfloat16"
    else:
        if stored is None:
            raw["quantization_config"] = dict(FP8_CONFIG) | ({"scale_fmt": "ue8m0"} if ue8m0 else {})
        else:
            ue8m0 = stored.scale_fmt == "ue8m0"
        if head:
            raw["quantization_config"]["lm_head"] = True
    checkpoint = Checkpoint(source)
    plan = _plan_fp8(checkpoint, ModelConfig.from_dict(raw)) if to == "fp8" else _plan_bf16(checkpoint)
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
    """`config`: of the checkpoint to be written."""
    quantized = {tensor.name for tensor in official_tensors(config) if tensor.scale_shape(config)}
    plan: list[Planned] = []
    for name, info in checkpoint.infos.items():
        shape = tuple(info.shape)
        if name in quantized and info.dtype != _E4M3:
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

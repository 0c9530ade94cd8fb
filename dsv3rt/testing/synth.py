"""Random checkpoints in the exact official layout: for tests, and to measure a model before downloading it.

Every tensor's values depend on the seed and its name alone, so that sharding does not change them. Matrices have
standard deviation 1/sqrt(inputs), which keeps activations of order 1. Large tensors are cut from one pool of random
values: their statistics are right, their entries repeat.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from dsv3rt.config import ModelConfig
from dsv3rt.interfaces import Initialiser
from dsv3rt.testing.presets import FP8_CONFIG
from dsv3rt.testing.tokenizer import BEGIN_ID, END_ID, write_tokenizer
from dsv3rt.testing.writer import Planned, atomic_folder, split, split_evenly, write_shards
from dsv3rt.weights.official import OfficialTensor, official_tensors

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
_POOL = 8_388_593
"""Values in the pool: a prime, so that rows of a matrix do not repeat."""
_FRESH = 1 << 18
"""Tensors up to this many elements get values of their own."""
_POOL_STD = 100.0
"""Standard deviation of the FP8 pool: the largest of 128x128 normal values, 4.2 of them, lies near 448."""
_LOGITS_STD = 4.0


def random_checkpoint(
    folder: str | Path,
    config: Mapping[str, Any],
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    fp8: bool | None = None,
    shards: int = 1,
    max_shard_bytes: int | None = None,
    tokenizer: bool = False,
    initialiser: Initialiser | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Write a whole checkpoint of random weights and return its folder.

    `config` is an official config.json; `fp8` True adds its quantization_config, False drops it, None leaves it.
    `dtype` is that of unquantized tensors. Files hold about equal shares of `shards`, or `max_shard_bytes` each.
    `initialiser` replaces the random values. Raises ConfigError, CheckpointError (exists already, disk full).
    """
    target = Path(folder)
    raw = dict(config)
    raw["torch_dtype"] = str(dtype).removeprefix("torch.")
    if fp8 is not None:
        raw.pop("quantization_config", None)
        if fp8:
            raw["quantization_config"] = dict(FP8_CONFIG)
    if tokenizer:
        raw |= {"bos_token_id": BEGIN_ID, "eos_token_id": END_ID}
    understood = ModelConfig.from_dict(raw)
    tensors = {tensor.name: tensor for tensor in official_tensors(understood)}
    planned = [item for tensor in tensors.values() for item in _plan(tensor, understood, dtype)]
    total = sum(item.nbytes for item in planned)
    maker = _Maker(understood, tensors, seed, initialiser)
    with atomic_folder(target, total) as scratch:
        done = 0
        files = split_evenly(planned, shards) if max_shard_bytes is None else split(planned, max_shard_bytes)
        for item, stream in write_shards(scratch, files):
            maker.write(item, stream)
            done += item.nbytes
            if progress:
                progress("writing weights", done, total)
        if tokenizer:
            write_tokenizer(scratch, understood)
        generation: dict[str, Any] = {"_from_model_config": True}
        generation.update((key, raw[key]) for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in raw)
        _write_json(scratch / "generation_config.json", generation)
        _write_json(scratch / "config.json", raw)
    return target


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _plan(tensor: OfficialTensor, config: ModelConfig, dtype: torch.dtype) -> list[Planned]:
    """The tensor, and its scales when it is stored as FP8."""
    if scale := tensor.scale_shape(config):
        return [
            Planned(tensor.name, tensor.shape, FP8),
            Planned(f"{tensor.name}_scale_inv", scale, torch.float32),
        ]
    return [Planned(tensor.name, tensor.shape, torch.float32 if tensor.kind == "bias" else dtype)]


class _Maker:
    """Makes values. Keeps the pools, and the scales of the matrix quantized last."""

    def __init__(
        self, config: ModelConfig, tensors: Mapping[str, OfficialTensor], seed: int, initialiser: Initialiser | None
    ) -> None:
        self.config = config
        self.tensors = tensors
        self.seed = seed
        self.initialiser = initialiser
        self.pools: dict[tuple[torch.dtype, float], Tensor] = {}

    def write(self, item: Planned, stream: BinaryIO) -> None:
        """Write the values of `item`."""
        weight = item.name.removesuffix("_scale_inv")
        tensor = self.tensors[weight]
        fresh = tensor.numel <= _FRESH or self.initialiser is not None
        if weight != item.name:
            scale = self.quantized(tensor)[1] if fresh else self.pool_scales(tensor, item.shape)
            stream.write(_bytes(scale))
        elif item.dtype == FP8:
            if fresh:
                stream.write(_bytes(self.quantized(tensor)[0]))
            else:
                self.write_from_pool(item, stream, _POOL_STD)
        elif fresh or tensor.kind in ("norm", "bias", "router"):
            stream.write(_bytes(self.values(tensor).to(item.dtype)))
        else:
            self.write_from_pool(item, stream, self.std(tensor))

    def std(self, tensor: OfficialTensor) -> float:
        """Standard deviation of a matrix's values."""
        if tensor.kind == "embed":
            return 1.0
        return (_LOGITS_STD if tensor.kind == "head" else 1.0) / math.sqrt(tensor.shape[-1])

    def generator(self, name: str) -> torch.Generator:
        digest = hashlib.blake2b(f"{self.seed}:{name}".encode(), digest_size=7).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little"))

    def values(self, tensor: OfficialTensor) -> Tensor:
        """float32 values of the tensor's own."""
        name = _original(tensor, self.config)
        values = torch.randn(tensor.shape, generator=self.generator(name))
        if self.initialiser is not None:
            self.initialiser(tensor.name, values, self.config)
        elif tensor.kind == "norm":
            values = 0.1 * values + (0.0 if tensor.name.endswith(".bias") else 1.0)
        elif tensor.kind == "bias":
            values = 0.1 * values + 6.0
        else:
            values *= self.std(tensor)
        return values

    def quantized(self, tensor: OfficialTensor) -> tuple[Tensor, Tensor]:
        """(e4m3 values, float32 scales) of a block-quantized matrix."""
        fmt = self.config.quantization
        assert fmt is not None
        return quantize_blocks(self.values(tensor), fmt.block_rows, fmt.block_cols, round_up=fmt.scale_fmt == "ue8m0")

    def pool_scales(self, tensor: OfficialTensor, shape: tuple[int, ...]) -> Tensor:
        """Scales that give values cut from the FP8 pool the wanted deviation, within a factor of 1.2 either way."""
        spread = torch.rand(shape, generator=self.generator(f"{tensor.name}_scale_inv")) * 0.4 + 0.8
        scale = self.std(tensor) / _POOL_STD * spread
        if self.config.quantization is not None and self.config.quantization.scale_fmt == "ue8m0":
            scale = torch.exp2(torch.round(torch.log2(scale)))
        return scale

    def pool(self, dtype: torch.dtype, std: float) -> Tensor:
        """Random values to cut large tensors from."""
        if (dtype, std) not in self.pools:
            values = torch.randn(_POOL, generator=self.generator("pool")) * std
            if dtype == FP8:
                values.clamp_(-FP8_MAX, FP8_MAX)
            if len(self.pools) >= 8:
                self.pools.pop(next(iter(self.pools)))
            self.pools[dtype, std] = values.to(dtype)
        return self.pools[dtype, std]

    def write_from_pool(self, item: Planned, stream: BinaryIO, std: float) -> None:
        pool = _bytes(self.pool(item.dtype, std))
        offset = self.generator(_original(self.tensors[item.name], self.config)).initial_seed() % _POOL
        offset *= item.dtype.itemsize
        left = item.nbytes
        while left:
            piece = pool[offset : offset + left]
            stream.write(piece)
            left -= len(piece)
            offset = 0


def _original(tensor: OfficialTensor, config: ModelConfig) -> str:
    """The name whose values the tensor has: an MTP module's copies equal the main model's."""
    if not tensor.copy:
        return tensor.name
    return "lm_head.weight" if tensor.kind == "head" and not config.tie_word_embeddings else "model.embed_tokens.weight"


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def quantize_blocks(values: Tensor, rows: int, cols: int, *, round_up: bool = False) -> tuple[Tensor, Tensor]:
    """(e4m3 [out, in], float32 scale_inv [ceil(out/rows), ceil(in/cols)]) with values = e4m3 x scale_inv.

    `round_up` makes the scales powers of two ("ue8m0").
    """
    height, width = values.shape
    padded = torch.nn.functional.pad(values, (0, -width % cols, 0, -height % rows))
    blocks = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // cols, cols)
    scale = blocks.abs().amax(dim=(1, 3)).clamp_min(1e-12) / FP8_MAX
    if round_up:
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    quantized = (blocks / scale[:, None, :, None]).clamp(-FP8_MAX, FP8_MAX).to(FP8)
    return quantized.reshape(padded.shape)[:height, :width].contiguous(), scale


def dequantize_blocks(weight: Tensor, scale: Tensor, rows: int, cols: int) -> Tensor:
    """float32 [out, in]: the values a block-quantized matrix stands for."""
    spread = scale.repeat_interleave(rows, 0)[: weight.shape[0]].repeat_interleave(cols, 1)[:, : weight.shape[1]]
    return weight.float() * spread

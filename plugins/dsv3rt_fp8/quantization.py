"""The storage formats by name: `fp8_block` (official FP8 checkpoints) and `dense` (bfloat16, float16, float32).

Both decide per matrix by what the checkpoint holds, so an FP8 checkpoint's unquantized matrices (head, `eh_proj`) are
read as they are.

Both take the option `pack`. `auto` keeps a second copy of bfloat16 matrices in 12 bits a weight, which decoding reads
for the same results bit for bit (see packing.py), where there is a kernel for it (AVX2 or AVX-512), the model is too
large for a cache, and the copies take no more than two thirds of the memory that the weights themselves leave free.
`on` packs whatever the sizes; `off` nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import get_args

import torch
from torch import nn

from dsv3rt.errors import ConfigError, UsageError
from dsv3rt.interfaces import Site
from dsv3rt_fp8 import gpu, native_ops, numerics
from dsv3rt_fp8.experts import Experts
from dsv3rt_fp8.modules import FeedForward, Linear, Storage
from dsv3rt_fp8.packing import SHARE, Packer, PackMode, is_worth_it


class _Quantization:
    """What both formats share. Option `pack=auto|on|off`: see the module's docstring."""

    name: str
    storage: Storage

    def __init__(self, site: Site) -> None:
        self.packing: PackMode = _pack_mode(self.name, site)
        self.packer = Packer()
        self.experts_a_token = site.config.num_experts_per_tok

    def linear(self, in_features: int, out_features: int, *, prefix: str, bias: bool = False) -> nn.Module:
        module = Linear(in_features, out_features, self.storage, bias=bias)
        module.packable = not prefix.endswith(".kv_b_proj")  # that one attention's own operators read, as it is
        return module

    def ffn(self, hidden: int, intermediate: int, *, prefix: str) -> nn.Module:
        return FeedForward(hidden, intermediate, self.storage)

    def experts(self, num_experts: int, hidden: int, intermediate: int, *, prefix: str) -> nn.Module:
        return Experts(num_experts, hidden, intermediate, self.storage)

    def describe(self, device: torch.device) -> str:
        if device.type != "cpu":
            scaled = self.name == "fp8_block" and gpu.has_block_scaled_mm(device)
            return f"torch on {device.type}, {'block-scaled matmul' if scaled else 'weights as stored'}"
        native = native_ops.library()
        if native is None:
            return "plain torch (slow: no C++ compiler was found to build the native kernels)"
        return f"native kernels, {native.variant}" + self._describe_packing()

    def _describe_packing(self) -> str:
        if self.packing == "off" or not native_ops.reads_packed():
            return ""
        if self.packing == "auto" and not self.packer.started:
            return ", 16-bit weights packed if that is worth it"
        return ", 16-bit weights packed" if self.packing == "on" or self.packer.units else ""

    # -- interfaces.PacksWeights

    def pack(self, roots: Sequence[nn.Module]) -> None:
        self.packer.start(roots, self.packing, self.experts_a_token)

    def packed(self, timeout_s: float | None = None) -> bool:
        return self.packer.wait(timeout_s)

    def expected_share(self, weight_bytes: int, bf16_bytes: int, device: torch.device) -> float:
        packs = device.type == "cpu" and native_ops.reads_packed()
        return SHARE if packs and is_worth_it(self.packing, weight_bytes, round(SHARE * bf16_bytes)) else 1.0

    def saved_bytes_per_token(self, model: nn.Module) -> int:
        return self.packer.saved_bytes_per_token(model)


class Dense(_Quantization):
    """`dense`: matrices as stored, two or four bytes a value. Option: `pack`."""

    name = "dense"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        _refuse_unknown(self.name, site, ("pack",))
        self.storage = Storage(site.dtype)


class BlockFP8(_Quantization):
    """`fp8_block`: e4m3 with a float32 scale for every 128 x 128 values.

    Options: `activations=fp8` rounds the input of every FP8 product to e4m3 with a scale for 1 x 128 values, as the
    official code does (a reference for its numerics; slower); `check=off` skips the search for NaN codes; `pack`.
    """

    name = "fp8_block"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        activations = site.options.get("activations", "float")
        check = site.options.get("check", "on")
        _refuse_unknown(self.name, site, ("activations", "check", "pack"))
        if activations not in ("float", "fp8"):
            raise UsageError(f"fp8_block: activations={activations} is unknown", fix="known: float, fp8")
        if check not in ("on", "off"):
            raise UsageError(f"fp8_block: check={check} is unknown", fix="known: on, off")
        block = site.config.quantization
        if block is not None and (block.block_rows, block.block_cols) != (numerics.BLOCK, numerics.BLOCK):
            raise ConfigError(
                f"config.json: weight_block_size {block.block_rows} x {block.block_cols} is not supported",
                fix="known: 128 x 128",
            )
        ue8m0 = block is not None and block.scale_fmt == "ue8m0"
        round_input = functools.partial(numerics.round_activations, ue8m0=ue8m0) if activations == "fp8" else None
        self.storage = Storage(site.dtype, round_input, ue8m0, check_nan=check == "on")

    def describe(self, device: torch.device) -> str:
        rounding = ", activations rounded to FP8" if self.storage.round_input is not None else ""
        return super().describe(device) + rounding


def _pack_mode(name: str, site: Site) -> PackMode:
    text = site.options.get("pack", "auto")
    for mode in get_args(PackMode):
        if text == mode:
            if mode == "on" and (site.device.type != "cpu" or not native_ops.reads_packed()):
                raise UsageError(f"{name}: pack=on needs native kernels for AVX2 or AVX-512", fix="pack=auto")
            return mode  # type: ignore[no-any-return]
    raise UsageError(f"{name}: pack={text} is unknown", fix=f"known: {', '.join(get_args(PackMode))}")


def _refuse_unknown(name: str, site: Site, known: tuple[str, ...]) -> None:
    if unknown := sorted(set(site.options) - set(known)):
        raise UsageError(
            f"{name} has no option {', '.join(unknown)}", fix=f"known: {', '.join(known)}" if known else "it has none"
        )

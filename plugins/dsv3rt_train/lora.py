"""Low-rank adapters (arXiv 2106.09685) in PEFT's format: learnt over a frozen base, read beside one, or merged into it.

Legend: r rank. y = x W^T + (alpha / r) x A^T B^T, A [r, in], B [out, r].
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsv3rt.errors import CheckpointError, UsageError

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
_ATTENTION = ("q_a_proj", "q_b_proj", "q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
TARGETS = (*_ATTENTION, "gate_proj", "up_proj", "down_proj")
"""Matrices that can be adapted: attention's, and those of the dense and the shared feed-forward networks."""
_PEFT = "base_model.model."
_REFUSED = ("use_dora", "use_rslora", "alpha_pattern", "rank_pattern", "fan_in_fan_out")


@dataclass(frozen=True)
class LoraSettings:
    """Which matrices get an adapter, and how large."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = _ATTENTION

    def __post_init__(self) -> None:
        unknown = sorted(set(self.targets) - set(TARGETS))
        if unknown or not self.targets:
            raise UsageError(f"cannot adapt {', '.join(unknown) or 'nothing'}", fix=f"known: {', '.join(TARGETS)}")
        if self.rank < 1:
            raise UsageError(f"LoRA rank {self.rank} is not positive", fix="give at least 1")
        if not 0 < self.alpha < float("inf"):
            raise UsageError(f"LoRA alpha {self.alpha:g} makes no sense", fix="give a number above 0, such as 16")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def adapts(self, name: str) -> bool:
        """Whether the matrix of this official name gets an adapter."""
        return name.rsplit(".", 1)[-1] in self.targets and ".experts." not in name


@dataclass(frozen=True)
class Adapter:
    """A trained adapter: (A, B) by the official name of their matrix."""

    settings: LoraSettings
    pairs: Mapping[str, tuple[Tensor, Tensor]]

    def delta(self, name: str) -> Tensor | None:
        """What is added to the matrix `name` ([out, in], float32); None if it is not adapted."""
        pair = self.pairs.get(name)
        return None if pair is None else self.settings.scale * (pair[1].float() @ pair[0].float())

    def save(self, folder: Path, base: str) -> None:
        """PEFT's two files."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        for name, (a, b) in self.pairs.items():
            tensors[f"{_PEFT}{name}.lora_A.weight"] = a.detach().cpu().contiguous().clone()
            tensors[f"{_PEFT}{name}.lora_B.weight"] = b.detach().cpu().contiguous().clone()
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        config: dict[str, Any] = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.settings.rank,
            "lora_alpha": self.settings.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "target_modules": sorted(self.pairs),
        }
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")

    @staticmethod
    def read(folder: Path) -> Adapter:
        """An adapter that PEFT or this plugin wrote. Raises CheckpointError."""
        try:
            config = json.loads((folder / CONFIG_FILE).read_text())
            tensors = load_file(folder / WEIGHTS_FILE)
        except (OSError, ValueError, SafetensorError) as error:
            needs = f"it needs {CONFIG_FILE} and {WEIGHTS_FILE}"
            raise CheckpointError(f"{folder} holds no LoRA adapter: {error}", fix=needs) from None
        refused = [key for key in _REFUSED if config.get(key)]
        if config.get("peft_type") != "LORA" or refused or config.get("bias", "none") != "none":
            what = ", ".join(refused) or config.get("peft_type") or "its kind"
            raise CheckpointError(f"{folder} is an adapter with {what}, which is not supported", fix="use plain LoRA")
        pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for key, a in tensors.items():
            if key.endswith(".lora_A.weight"):
                name = key.removeprefix(_PEFT).removesuffix(".lora_A.weight")
                pairs[name] = (a, tensors[key.replace("lora_A", "lora_B")])
        if 2 * len(pairs) != len(tensors):
            raise CheckpointError(f"{folder} has tensors beside LoRA pairs", fix="use plain LoRA")
        targets = tuple(sorted({name.rsplit(".", 1)[-1] for name in pairs}))
        return Adapter(LoraSettings(int(config["r"]), float(config["lora_alpha"]), targets), pairs)


@torch.no_grad()
def merge(official: Mapping[str, Tensor], adapter: Adapter) -> dict[str, Tensor]:
    """The base's tensors with the adapter added. Raises CheckpointError when it does not fit."""
    merged = dict(official)
    for name in adapter.pairs:
        weight, delta = merged.get(f"{name}.weight"), adapter.delta(name)
        if weight is None or delta is None or weight.shape != delta.shape:
            raise CheckpointError(f"the adapter changes {name}, which the base does not have in that shape",
                                  fix="use the base it was trained on")  # fmt: skip
        merged[f"{name}.weight"] = weight.float() + delta
    return merged

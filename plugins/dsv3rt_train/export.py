"""Write a trained model as an official checkpoint: safetensors by official names, config.json,
generation_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dsv3rt_train.model.build import TrainableModel
from dsv3rt_train.model.matrices import UNQUANTIZED

_BLOCK = 128
_E4M3_MAX = 448.0


def quantize_blocks(w: Tensor) -> tuple[Tensor, Tensor]:
    """[out, in] -> (e4m3 [out, in], float32 scale_inv [ceil(out/128), ceil(in/128)]): w is about weight x scale_inv."""
    rows, columns = w.shape
    padded = torch.nn.functional.pad(w.float(), (0, -columns % _BLOCK, 0, -rows % _BLOCK))
    blocks = padded.unflatten(1, (-1, _BLOCK)).unflatten(0, (-1, _BLOCK))
    scale = blocks.abs().amax(dim=(1, 3)).clamp_min(1e-12) / _E4M3_MAX
    stored = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    return stored.flatten(2, 3).flatten(0, 1)[:rows, :columns].contiguous(), scale


def is_quantized(name: str, tensor: Tensor) -> bool:
    """Whether official FP8 checkpoints keep this tensor in FP8."""
    parts = name.split(".")
    kept = ("embed_tokens", *UNQUANTIZED)
    return tensor.dim() == 2 and not any(part in kept for part in parts) and parts[-2] != "gate"


def tensors(official: Mapping[str, Tensor], *, fp8: bool) -> dict[str, Tensor]:
    """What goes into the safetensors file."""
    stored: dict[str, Tensor] = {}
    for name, tensor in official.items():
        if name.endswith("e_score_correction_bias"):
            stored[name] = tensor.float().cpu().clone()
        elif fp8 and is_quantized(name, tensor):
            stored[name], stored[name + "_scale_inv"] = quantize_blocks(tensor.cpu())
        else:
            stored[name] = tensor.to(torch.bfloat16 if fp8 else torch.float32).cpu().contiguous().clone()
    return stored


def write_tensors(
    official: Mapping[str, Tensor], folder: Path, config: dict[str, Any], *, fp8: bool, temperature: float = 0.4
) -> int:
    """The checkpoint of these float32 tensors, without its tokenizer. Returns the bytes of weights.

    `config` is the config.json trained from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = tensors(official, fp8=fp8)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    written = {key: value for key, value in config.items() if key != "quantization_config"}
    written["torch_dtype"] = "bfloat16" if fp8 else "float32"
    if fp8:
        written["quantization_config"] = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [_BLOCK, _BLOCK],
        }
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    generation = {
        "_from_model_config": True,
        "bos_token_id": config.get("bos_token_id"),
        "eos_token_id": config.get("eos_token_id"),
        "do_sample": True,
        "temperature": temperature,
        "top_p": 0.9,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    return sum(t.numel() * t.element_size() for t in stored.values())


def write(model: TrainableModel, folder: Path, config: dict[str, Any], *, fp8: bool, temperature: float = 0.4) -> int:
    """`write_tensors` of a model as it stands (adapters, if it has any, left out)."""
    return write_tensors(model.official(), folder, config, fp8=fp8, temperature=temperature)

"""Small models of every family, and the same weights in `transformers`, an independent implementation."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dsv3rt.testing.presets import PRESETS
from dsv3rt.testing.synth import dequantize_blocks, random_checkpoint
from dsv3rt.weights import Checkpoint

BASE = {
    "vocab_size": 211,
    "hidden_size": 160,
    "intermediate_size": 136,
    "kv_lora_rank": 40,
    "max_position_embeddings": 640,
    "moe_intermediate_size": 72,
    "n_routed_experts": 16,
    "num_attention_heads": 5,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 5,
    "first_k_dense_replace": 1,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
"""Odd shapes: nothing divides by 128, and FP8 matrices have two blocks one way and a broken one the other."""

FAMILY_PRESETS = {"deepseek_v3": "v3", "kimi_k2": "kimi-k2", "deepseek_v2": "v2-lite", "glm4_moe_lite": "glm-4.7-flash"}
YARN = {
    "type": "yarn",
    "factor": 4,
    "original_max_position_embeddings": 160,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 0.8,
}


@dataclass(frozen=True)
class Case:
    """One combination."""

    family: str
    topk_method: str = "noaux_tc"
    q_lora: bool = True
    groups: int = 1
    yarn: bool = False
    fp8: bool = False
    shards: int = 1

    def __str__(self) -> str:
        parts = [self.family, self.topk_method, f"q_lora={self.q_lora}", f"groups={self.groups}", f"yarn={self.yarn}"]
        return "-".join([*parts, "fp8" if self.fp8 else "bf16", f"shards={self.shards}"])

    def config(self) -> dict[str, Any]:
        """An official config.json of the family, shrunk."""
        config = dict(PRESETS[FAMILY_PRESETS[self.family]]) | BASE
        config |= {
            "topk_method": self.topk_method,
            "q_lora_rank": 56 if self.q_lora else None,
            "n_group": self.groups,
            "topk_group": 2 if self.groups > 1 else 1,
            "rope_scaling": YARN if self.yarn else None,
        }
        if config.get("num_nextn_predict_layers"):
            config["num_nextn_predict_layers"] = 1
        return config


def all_cases() -> list[Case]:
    """The grid; each family has the routers it has. Files, which are no maths, take turns being one or several."""
    routers = {
        "deepseek_v3": [("noaux_tc", 1), ("noaux_tc", 4)],
        "kimi_k2": [("noaux_tc", 1)],
        "glm4_moe_lite": [("noaux_tc", 1), ("noaux_tc", 4)],
        "deepseek_v2": [("greedy", 1), ("group_limited_greedy", 4)],
    }
    return [
        Case(family, method, q_lora, groups, yarn, fp8, shards=3 if fp8 != yarn else 1)
        for family, methods in routers.items()
        for method, groups in methods
        for q_lora in (False, True)
        for yarn in (False, True)
        for fp8 in (False, True)
    ]


def make(case: Case, folder: Path) -> Path:
    return random_checkpoint(folder, case.config(), seed=11, fp8=case.fp8, shards=case.shards)


def reference(checkpoint: Path, folder: Path) -> Any:
    """The `transformers` model with the values of `checkpoint`: FP8 dequantized, everything in float32, on `folder`."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as hf_logging

    config = json.loads((checkpoint / "config.json").read_text())
    config.pop("quantization_config", None)
    config.pop("auto_map", None)
    config["torch_dtype"] = "float32"
    if config["model_type"] == "kimi_k2":  # which is the DeepSeek-V3 architecture under another name
        config["model_type"] = "deepseek_v3"
    source = Checkpoint(checkpoint)
    tensors = {}
    for name in source.names():
        layer = name.split(".")[2] if name.startswith("model.layers.") else "0"
        if name.endswith("_scale_inv") or int(layer) >= config["num_hidden_layers"]:
            continue
        weight, scale = source.get(name), f"{name}_scale_inv"
        tensors[name] = dequantize_blocks(weight, source.get(scale), 128, 128) if scale in source else weight.float()
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    hf_logging.set_verbosity(logging.ERROR)
    hf_logging.disable_progress_bar()
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    missing = set(info["missing_keys"]) - ({"lm_head.weight"} if config["tie_word_embeddings"] else set())
    assert not missing and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval()

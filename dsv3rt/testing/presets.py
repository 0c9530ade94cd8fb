"""Configs to make random checkpoints of: small ones for tests, and the official ones of each family.

The keys and values are those of the official config.json files.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from dsv3rt.errors import UsageError

FP8_CONFIG: Mapping[str, Any] = MappingProxyType(
    {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
)


def _auto_map(name: str) -> dict[str, str]:
    return {
        "AutoConfig": f"configuration_deepseek.{name}Config",
        "AutoModel": f"modeling_deepseek.{name}Model",
        "AutoModelForCausalLM": f"modeling_deepseek.{name}ForCausalLM",
    }


def _yarn(factor: float, mscale: float, beta_fast: float = 32) -> dict[str, Any]:
    return {
        "beta_fast": beta_fast,
        "beta_slow": 1,
        "factor": factor,
        "mscale": mscale,
        "mscale_all_dim": mscale,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    }


_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": _auto_map("DeepseekV3"),
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": dict(FP8_CONFIG),
    "rms_norm_eps": 1e-06,
    "rope_scaling": _yarn(40, 1.0),
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 129280,
}

_KIMI_K2: dict[str, Any] = _V3 | {
    "aux_loss_alpha": 0.001,
    "bos_token_id": 163584,
    "eos_token_id": 163585,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 131072,
    "model_type": "kimi_k2",
    "n_group": 1,
    "n_routed_experts": 384,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0,
    "pretraining_tp": 1,
    "rope_scaling": _yarn(32, 1.0, beta_fast=1),
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "seq_aux": True,
    "topk_group": 1,
    "vocab_size": 163840,
}

_MOONLIGHT: dict[str, Any] = {
    key: value for key, value in _V3.items() if key not in ("rope_scaling", "ep_size", "quantization_config")
} | {
    "aux_loss_alpha": 0.001,
    "bos_token_id": 163584,
    "eos_token_id": 163585,
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 11264,
    "max_position_embeddings": 8192,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "num_nextn_predict_layers": 0,
    "pretraining_tp": 1,
    "q_lora_rank": None,
    "rms_norm_eps": 1e-05,
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.446,
    "seq_aux": True,
    "topk_group": 1,
    "transformers_version": "4.48.3",
    "vocab_size": 163840,
}

_V2_LITE: dict[str, Any] = {key: value for key, value in _MOONLIGHT.items() if key != "num_nextn_predict_layers"} | {
    "architectures": ["DeepseekV2ForCausalLM"],
    "auto_map": _auto_map("DeepseekV2"),
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "intermediate_size": 10944,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v2",
    "norm_topk_prob": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": _yarn(40, 0.707),
    "rope_theta": 10000,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "topk_method": "greedy",
    "transformers_version": "4.33.1",
    "vocab_size": 102400,
}

_GLM_4_7_FLASH: dict[str, Any] = {
    "architectures": ["Glm4MoeLiteForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "eos_token_id": [154820, 154827, 154829],
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 10240,
    "kv_lora_rank": 512,
    "max_position_embeddings": 202752,
    "model_type": "glm4_moe_lite",
    "moe_intermediate_size": 1536,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 20,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 47,
    "num_key_value_heads": 20,
    "num_nextn_predict_layers": 1,
    "pad_token_id": 154820,
    "partial_rotary_factor": 1.0,
    "q_lora_rank": 768,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "routed_scaling_factor": 1.8,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "5.0.0rc0",
    "v_head_dim": 256,
    "vocab_size": 154880,
}

_TINY: dict[str, Any] = {key: value for key, value in _V3.items() if key != "quantization_config"} | {
    "bos_token_id": 256,
    "eos_token_id": 257,
    "first_k_dense_replace": 1,
    "hidden_size": 256,
    "intermediate_size": 512,
    "kv_lora_rank": 64,
    "max_position_embeddings": 4096,
    "moe_intermediate_size": 128,
    "n_group": 4,
    "n_routed_experts": 16,
    "num_attention_heads": 4,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 96,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "rope_scaling": None,
    "topk_group": 2,
    "v_head_dim": 32,
    "vocab_size": 512,
}

_SMALL: dict[str, Any] = _TINY | {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "kv_lora_rank": 256,
    "max_position_embeddings": 16384,
    "moe_intermediate_size": 512,
    "n_group": 1,
    "n_routed_experts": 32,
    "num_attention_heads": 8,
    "num_hidden_layers": 9,
    "num_key_value_heads": 8,
    "q_lora_rank": None,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "topk_group": 1,
    "v_head_dim": 64,
    "vocab_size": 32768,
}

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "tiny": _TINY,
        "small": _SMALL,
        "moonlight-16b-a3b": _MOONLIGHT,
        "v2-lite": _V2_LITE,
        "glm-4.7-flash": _GLM_4_7_FLASH,
        "v3": _V3,
        "v3-slice": _V3 | {"num_hidden_layers": 2, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0},
        "kimi-k2": _KIMI_K2,
        "kimi-k2-slice": _KIMI_K2 | {"num_hidden_layers": 2},
    }
)
"""Name -> official config.json. `tiny` has everything the family has in a few MB; a slice is a whole model's first
layers of each kind in their true dimensions, without MTP modules unless asked for."""


def preset(name: str, *, layers: int | None = None, mtp: int | None = None) -> dict[str, Any]:
    """The config called `name`, with other numbers of layers and MTP modules if given. Raises UsageError."""
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}", fix=f"known: {', '.join(PRESETS)}")
    config = dict(PRESETS[name])
    if layers is not None:
        if layers < 1:
            raise UsageError(f"--layers {layers} is not at least 1", fix="give a number of layers")
        config["num_hidden_layers"] = layers
        config["first_k_dense_replace"] = min(config["first_k_dense_replace"], layers)
    if mtp is not None:
        if mtp < 0 or (mtp and "num_nextn_predict_layers" not in config):
            raise UsageError(f"--mtp {mtp}: {name} cannot have that many MTP modules", fix="drop --mtp")
        if mtp or "num_nextn_predict_layers" in config:
            config["num_nextn_predict_layers"] = mtp
    return config

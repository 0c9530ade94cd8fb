"""The bundled checkpoint's recipe: everything its training starts from, rebuilt in a folder."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from dsv3rt_train.data import tokenizer
from dsv3rt_train.data.documents import read_records, texts_of
from dsv3rt_train.data.mixture import Sources, write_recipe

HELD_OUT = 200
"""Held-out conversations of each kind."""
_TOKENIZER_CONVERSATIONS = 60_000

CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 384,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 128,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "num_nextn_predict_layers": 1,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "max_position_embeddings": 1024,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "use_cache": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
"""The bundled model: everything the family has, small."""


def make_bundled(folder: Path, wordnet: Path, *, conversations: int, vocab_size: int, seed: int) -> dict[str, Any]:
    """train.jsonl, heldout/*.jsonl, tokenizer and config.json in `folder`. Raises UserError if a source is missing."""
    write_recipe(folder, Sources.read(wordnet), seed=seed, conversations=conversations, held_out=HELD_OUT)
    records = itertools.islice(read_records([folder / "train.jsonl"]), _TOKENIZER_CONVERSATIONS)
    processor = tokenizer.train(texts_of(records), vocab_size)
    tokenizer.save(processor, folder, max_length=CONFIG["max_position_embeddings"])
    (folder / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": vocab_size}, indent=2) + "\n")
    return {"folder": str(folder), "conversations": conversations, "vocab_size": vocab_size, "seed": seed}

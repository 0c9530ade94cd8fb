"""What a model costs, from its config alone: parameters, bytes on disk, bytes read and cached a token.

Decoding reads every active weight once a token, so bytes read a token and the machine's bandwidth bound its speed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from dsv3rt.config import ModelConfig
from dsv3rt.weights.official import QUANTIZED, official_tensors

_ITEMSIZE: Mapping[str, int] = MappingProxyType({"float32": 4, "float16": 2, "bfloat16": 2})


@dataclass(frozen=True)
class Sizes:
    """Of one model. MTP modules are counted apart."""

    parameters: int
    active_parameters: int
    """That take part in one token: the embedding and the experts not chosen do not."""
    mtp_parameters: int
    """Without the copies of embedding and output head."""
    disk_bytes: int
    """Of the whole checkpoint, MTP modules and copies included."""
    weight_bytes: int
    """That must be in memory to generate without drafting."""
    mtp_bytes: int
    """More, with the MTP modules; without copies."""
    read_bytes_per_token: int
    """Of the weights as they are stored."""
    bf16_bytes: int
    """Of `weight_bytes`, those of bfloat16 matrices that the quantization slot makes."""
    bf16_read_bytes_per_token: int
    """Of `read_bytes_per_token`, the same."""
    cache_bytes_per_token: int
    """16 bits a value: layers x (latent + rope) x 2."""
    dense_layers: int
    moe_layers: int

    @classmethod
    def of(cls, config: ModelConfig) -> Sizes:
        """Count the official layout of `config`."""
        itemsize = _ITEMSIZE.get(config.torch_dtype, 2)
        count: Counter[str] = Counter()
        experts = 0
        for tensor in official_tensors(config):
            stored = tensor.stored_bytes(config, itemsize)
            count["disk"] += stored
            if tensor.layer is not None and tensor.layer >= config.num_hidden_layers:
                if not tensor.copy:
                    count["mtp"] += tensor.numel
                    count["mtp_bytes"] += stored
                continue
            count["parameters"] += tensor.numel
            count["bytes"] += stored
            made = tensor.kind in QUANTIZED or tensor.kind == "head"
            bf16 = stored if made and config.torch_dtype == "bfloat16" and not tensor.scale_shape(config) else 0
            count["bf16"] += bf16
            if tensor.kind == "expert":
                experts += tensor.numel
                count["expert_bytes"] += stored
                count["bf16_experts"] += bf16
            elif tensor.kind != "embed" or config.tie_word_embeddings:
                count["active"] += tensor.numel
                count["read"] += stored
        chosen, of = config.num_experts_per_tok, max(config.n_routed_experts, 1)
        moe = sum(config.is_moe(layer) for layer in range(config.num_hidden_layers))
        return cls(
            parameters=count["parameters"],
            active_parameters=count["active"] + experts * chosen // of,
            mtp_parameters=count["mtp"],
            disk_bytes=count["disk"],
            weight_bytes=count["bytes"],
            mtp_bytes=count["mtp_bytes"],
            read_bytes_per_token=count["read"] + count["expert_bytes"] * chosen // of + config.hidden_size * itemsize,
            bf16_bytes=count["bf16"],
            bf16_read_bytes_per_token=count["bf16"] - count["bf16_experts"] * (of - chosen) // of,
            cache_bytes_per_token=2 * config.num_hidden_layers * (config.kv_lora_rank + config.qk_rope_head_dim),
            dense_layers=config.num_hidden_layers - moe,
            moe_layers=moe,
        )

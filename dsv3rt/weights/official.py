"""The official layout: which tensors a checkpoint of a given config holds, by name, shape and kind.

Source: the index files of DeepSeek-V3, V2-Lite, Moonlight and GLM-4.7-Flash. Legend: D hidden, H heads, C kv latent
rank, Q query latent rank, P no-rope dims, R rope dims, V value dims, E experts, F expert hidden.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dsv3rt.config import ModelConfig

Kind = Literal["embed", "head", "norm", "attention", "dense", "shared", "expert", "router", "bias", "eh_proj"]
QUANTIZED: frozenset[Kind] = frozenset({"attention", "dense", "shared", "expert"})
"""What official FP8 checkpoints store as FP8; everything else stays in 16 bits (`bias` in float32), the head too unless
`quantization_config.lm_head` is true."""


@dataclass(frozen=True)
class OfficialTensor:
    """One tensor of the official layout."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    layer: int | None
    """None for embedding, final norm and output head."""
    copy: bool = False
    """An MTP module's copy of the embedding or the output head, which a checkpoint may leave out."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def scale_shape(self, config: ModelConfig) -> tuple[int, int] | None:
        """Shape of `X.weight_scale_inv` when this matrix is stored as block FP8."""
        if config.quantization is None or len(self.shape) != 2:
            return None
        if self.kind not in QUANTIZED and not (self.kind == "head" and config.quantization.lm_head):
            return None
        rows, cols = self.shape
        return -(-rows // config.quantization.block_rows), -(-cols // config.quantization.block_cols)

    def stored_bytes(self, config: ModelConfig, itemsize: int) -> int:
        """Bytes on disk, scales included, where unquantized tensors take `itemsize` bytes an element."""
        if scale := self.scale_shape(config):
            return self.numel + 4 * math.prod(scale)
        return self.numel * (4 if self.kind == "bias" else itemsize)


def official_tensors(config: ModelConfig) -> Iterator[OfficialTensor]:
    """Every tensor of a whole checkpoint, MTP modules included, in the order of the computation."""
    hidden = config.hidden_size
    yield OfficialTensor("model.embed_tokens.weight", (config.vocab_size, hidden), "embed", None)
    for layer in range(config.num_hidden_layers):
        yield from _block(config, layer)
    yield OfficialTensor("model.norm.weight", (hidden,), "norm", None)
    if not config.tie_word_embeddings:
        yield OfficialTensor("lm_head.weight", (config.vocab_size, hidden), "head", None)
    for layer in range(config.num_hidden_layers, config.num_hidden_layers + config.num_nextn_predict_layers):
        prefix = f"model.layers.{layer}"
        yield OfficialTensor(f"{prefix}.embed_tokens.weight", (config.vocab_size, hidden), "embed", layer, copy=True)
        yield OfficialTensor(f"{prefix}.enorm.weight", (hidden,), "norm", layer)
        yield OfficialTensor(f"{prefix}.hnorm.weight", (hidden,), "norm", layer)
        yield OfficialTensor(f"{prefix}.eh_proj.weight", (hidden, 2 * hidden), "eh_proj", layer)
        yield from _block(config, layer)
        yield OfficialTensor(f"{prefix}.shared_head.norm.weight", (hidden,), "norm", layer)
        shape = (config.vocab_size, hidden)
        yield OfficialTensor(f"{prefix}.shared_head.head.weight", shape, "head", layer, copy=True)


def _block(config: ModelConfig, layer: int) -> Iterator[OfficialTensor]:
    """One decoder layer."""
    prefix, hidden = f"model.layers.{layer}", config.hidden_size
    yield OfficialTensor(f"{prefix}.input_layernorm.weight", (hidden,), "norm", layer)
    yield from _attention(config, layer)
    yield OfficialTensor(f"{prefix}.post_attention_layernorm.weight", (hidden,), "norm", layer)
    if not config.is_moe(layer):
        yield from _ffn(f"{prefix}.mlp", hidden, config.intermediate_size, "dense", layer)
        return
    experts = config.n_routed_experts
    yield OfficialTensor(f"{prefix}.mlp.gate.weight", (experts, hidden), "router", layer)
    if config.topk_method == "noaux_tc":
        yield OfficialTensor(f"{prefix}.mlp.gate.e_score_correction_bias", (experts,), "bias", layer)
    for expert in range(experts):
        yield from _ffn(f"{prefix}.mlp.experts.{expert}", hidden, config.moe_intermediate_size, "expert", layer)
    if config.n_shared_experts:
        width = config.n_shared_experts * config.moe_intermediate_size
        yield from _ffn(f"{prefix}.mlp.shared_experts", hidden, width, "shared", layer)


def _attention(config: ModelConfig, layer: int) -> Iterator[OfficialTensor]:
    prefix, hidden, heads = f"model.layers.{layer}.self_attn", config.hidden_size, config.num_attention_heads
    latent, query = config.kv_lora_rank, config.q_lora_rank

    def matrix(name: str, rows: int, cols: int, *, bias: bool = False) -> Iterator[OfficialTensor]:
        yield OfficialTensor(f"{prefix}.{name}.weight", (rows, cols), "attention", layer)
        if bias:
            yield OfficialTensor(f"{prefix}.{name}.bias", (rows,), "norm", layer)

    if query is None:
        yield from matrix("q_proj", heads * config.qk_head_dim, hidden)
    else:
        yield from matrix("q_a_proj", query, hidden, bias=config.attention_bias)
        yield OfficialTensor(f"{prefix}.q_a_layernorm.weight", (query,), "norm", layer)
        yield from matrix("q_b_proj", heads * config.qk_head_dim, query)
    yield from matrix("kv_a_proj_with_mqa", latent + config.qk_rope_head_dim, hidden, bias=config.attention_bias)
    yield OfficialTensor(f"{prefix}.kv_a_layernorm.weight", (latent,), "norm", layer)
    yield from matrix("kv_b_proj", heads * (config.qk_nope_head_dim + config.v_head_dim), latent)
    yield from matrix("o_proj", hidden, heads * config.v_head_dim, bias=config.attention_bias)


def _ffn(prefix: str, hidden: int, width: int, kind: Kind, layer: int) -> Iterator[OfficialTensor]:
    yield OfficialTensor(f"{prefix}.gate_proj.weight", (width, hidden), kind, layer)
    yield OfficialTensor(f"{prefix}.up_proj.weight", (width, hidden), kind, layer)
    yield OfficialTensor(f"{prefix}.down_proj.weight", (hidden, width), kind, layer)

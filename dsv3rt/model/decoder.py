"""The decoder: embedding, blocks, final norm, head. Module names are the official checkpoint's.

Legend: B sequences, T new tokens, D hidden, V vocabulary, L = tokens whose logits are wanted.
Source: V3 report, section 2; official inference/model.py `Transformer`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsv3rt.config import ModelConfig
from dsv3rt.interfaces import Cache
from dsv3rt.model.norm import RMSNorm


class Embedding(nn.Module):
    """ids [...] -> [..., D] in the compute dtype."""

    keep_stored_dtype = True

    def __init__(self, vocab_size: int, hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))
        self.dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight).to(self.dtype)


class Block(nn.Module):
    """h = x + attention(norm(x)); y = h + ffn(norm(h))."""

    def __init__(self, config: ModelConfig, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = attention
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = mlp

    def forward(self, x_BTD: Tensor, positions_BT: Tensor, cache: Cache | None) -> Tensor:
        attended_BTD = self.self_attn(self.input_layernorm(x_BTD), positions_BT, cache)
        h_BTD, normed_BTD = self.post_attention_layernorm.add(x_BTD, attended_BTD)
        y_BTD: Tensor = h_BTD + self.mlp(normed_BTD)
        return y_BTD


class Backbone(nn.Module):
    """Everything the official checkpoint calls `model.*`, but for the MTP modules."""

    def __init__(self, config: ModelConfig, blocks: Sequence[nn.Module], dtype: torch.dtype) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtype)
        self.layers = nn.ModuleList(blocks)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Decoder(nn.Module):
    """ids -> logits. Holds no state: caches are passed in and written in place."""

    def __init__(
        self, config: ModelConfig, blocks: Sequence[nn.Module], lm_head: nn.Module, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config, blocks, dtype)
        self.lm_head = lm_head

    def hidden(self, ids_BT: Tensor, positions_BT: Tensor, caches: Sequence[Cache] | None = None) -> Tensor:
        """The last block's output [B, T, D], before the final norm."""
        x_BTD: Tensor = self.model.embed_tokens(ids_BT)
        for i, block in enumerate(self.model.layers):
            x_BTD = block(x_BTD, positions_BT, None if caches is None else caches[i])
        return x_BTD

    def logits(self, hidden_BLD: Tensor) -> Tensor:
        """float32 [B, L, V] from hidden states before the final norm."""
        logits_BLV: Tensor = self.lm_head(self.model.norm(hidden_BLD))
        return logits_BLV.float()

    def forward(
        self, ids_BT: Tensor, positions_BT: Tensor, caches: Sequence[Cache] | None = None, last: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """(logits float32 [B, L, V] of the `last` L tokens (None: all T), hidden [B, T, D] before the final norm)."""
        hidden_BTD = self.hidden(ids_BT, positions_BT, caches)
        wanted = hidden_BTD if last is None else hidden_BTD[:, -last:] if last else hidden_BTD[:, :0]
        return self.logits(wanted), hidden_BTD

    def make_caches(self, capacity: int, device: torch.device, batch: int = 1) -> list[Cache]:
        """One cache a layer, each with room for `capacity` tokens."""
        return [block.self_attn.make_cache(batch, capacity, device) for block in self.model.layers]  # type: ignore[operator, union-attr]

    @property
    def cache_bytes_per_token(self) -> int:
        return sum(int(block.self_attn.cache_bytes_per_token) for block in self.model.layers)  # type: ignore[union-attr, arg-type, misc]

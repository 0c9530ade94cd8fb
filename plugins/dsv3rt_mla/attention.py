"""Multi-head latent attention (V2 report, section 2.1; V3 report, section 2.1.1; official inference/model.py `MLA`).

Legend: B sequences, T new tokens, S cache length, D hidden, H heads, C kv latent rank, R rope dims, P no-rope dims,
Q = P + R, V value dims, A = C + R what is cached a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsv3rt.interfaces import Cache, Site
from dsv3rt.model.norm import RMSNorm
from dsv3rt.model.rope import Rope, rotate

# Up to this many new tokens the absorbed form reads less than the expanded one computes.
ABSORB_UP_TO = 16


class LatentAttention(nn.Module):
    """Caches one latent and one shared rope key a token, never the expanded keys and values.

    Absorbed form (few new tokens): queries are taken into the latent space, attention runs over the latents themselves.
    Expanded form (prefill, training): the latents are expanded into keys and values, attention is torch's own.
    """

    def __init__(self, site: Site) -> None:
        super().__init__()
        config, linear = site.config, site.quantization.linear
        self.heads = config.num_attention_heads
        self.latent, self.rope_dims = config.kv_lora_rank, config.qk_rope_head_dim
        self.nope, self.value = config.qk_nope_head_dim, config.v_head_dim
        self.scale = config.softmax_scale
        self.interleaved = config.rope_interleave
        self.cache_dtype = site.cache_dtype
        self.cache_bytes_per_token = (self.latent + self.rope_dims) * site.cache_dtype.itemsize
        self.rope = Rope(config)

        def make(name: str, rows: int, columns: int, *, bias: bool = False) -> nn.Module:
            return linear(columns, rows, prefix=f"{site.prefix}.{name}", bias=bias)

        hidden, rank, bias = config.hidden_size, config.q_lora_rank, config.attention_bias
        query_rows = self.heads * config.qk_head_dim
        if rank is None:
            self.q_proj = make("q_proj", query_rows, hidden)
        else:
            self.q_a_proj = make("q_a_proj", rank, hidden, bias=bias)
            # the official reference uses 1e-6 for the two latent norms whatever rms_norm_eps says
            self.q_a_layernorm = RMSNorm(rank, 1e-6)
            self.q_b_proj = make("q_b_proj", query_rows, rank)
        self.q_lora = rank is not None
        self.kv_a_proj_with_mqa = make("kv_a_proj_with_mqa", self.latent + self.rope_dims, hidden, bias=bias)
        self.kv_a_layernorm = RMSNorm(self.latent, 1e-6)
        self.kv_b_proj = make("kv_b_proj", self.heads * (self.nope + self.value), self.latent)
        self.o_proj = make("o_proj", hidden, self.heads * self.value, bias=bias)

    def make_cache(self, batch: int, capacity: int, device: torch.device) -> Cache:
        # empty, not zeros: untouched pages cost no memory, so a long context is paid for as it is used
        return (torch.empty(batch, capacity, self.latent + self.rope_dims, dtype=self.cache_dtype, device=device),)

    def forward(self, x_BTD: Tensor, positions_BT: Tensor, cache: Cache | None) -> Tensor:
        cos, sin = self.rope(positions_BT)
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD))) if self.q_lora else self.q_proj(x_BTD)
        q_BTHQ = q.unflatten(-1, (self.heads, self.nope + self.rope_dims))
        q_BTHP, q_BTHR = q_BTHQ.split([self.nope, self.rope_dims], dim=-1)
        q_BTHR = rotate(q_BTHR, cos[:, :, None], sin[:, :, None], interleaved=self.interleaved)

        latent_BTC, k_BTR = self.kv_a_proj_with_mqa(x_BTD).split([self.latent, self.rope_dims], dim=-1)
        k_BTR = rotate(k_BTR, cos, sin, interleaved=self.interleaved)
        new_BTA = torch.cat([self.kv_a_layernorm(latent_BTC), k_BTR], dim=-1)

        if cache is None:
            y_BTHV = self.expanded(q_BTHP, q_BTHR, new_BTA, None)
        else:
            (cache_BSA,) = cache
            rows = torch.arange(cache_BSA.shape[0], device=cache_BSA.device)[:, None]
            cache_BSA.index_put_((rows, positions_BT), new_BTA.to(cache_BSA.dtype))
            slots_S = torch.arange(cache_BSA.shape[1], device=cache_BSA.device)
            visible_BTS = slots_S <= positions_BT[..., None]
            # stale slots may hold anything, NaN included, and 0 * NaN is NaN
            used_BS1 = visible_BTS[:, -1, :, None]
            past_BSA = torch.where(used_BS1, cache_BSA, 0).to(x_BTD.dtype)
            form = self.absorbed if x_BTD.shape[1] <= ABSORB_UP_TO else self.expanded
            y_BTHV = form(q_BTHP, q_BTHR, past_BSA, visible_BTS)
        y_BTD: Tensor = self.o_proj(y_BTHV.flatten(-2))
        return y_BTD

    def absorbed(self, q_BTHP: Tensor, q_BTHR: Tensor, past_BSA: Tensor, visible_BTS: Tensor) -> Tensor:
        """Attention in the latent space: q k = (q_nope W_k) latent + q_rope k_rope."""
        weight = self.kv_b_proj.dequantized(q_BTHP.dtype)  # type: ignore[operator]
        weight_HxC = weight.unflatten(0, (self.heads, self.nope + self.value))
        key_HPC, value_HVC = weight_HxC.split([self.nope, self.value], dim=1)
        q_BTHC = torch.einsum("bthp,hpc->bthc", q_BTHP, key_HPC)
        q_BTHA = torch.cat([q_BTHC, q_BTHR], dim=-1)
        scores_BHTS = torch.einsum("btha,bsa->bhts", q_BTHA, past_BSA).float() * self.scale
        scores_BHTS = scores_BHTS.masked_fill(~visible_BTS[:, None], float("-inf"))
        probs_BHTS = scores_BHTS.softmax(dim=-1).to(past_BSA.dtype)
        context_BTHC = torch.einsum("bhts,bsc->bthc", probs_BHTS, past_BSA[..., : self.latent])
        return torch.einsum("bthc,hvc->bthv", context_BTHC, value_HVC)

    def expanded(self, q_BTHP: Tensor, q_BTHR: Tensor, past_BSA: Tensor, visible_BTS: Tensor | None) -> Tensor:
        """Attention over expanded keys and values, by torch's scaled_dot_product_attention. No mask means causal."""
        latent_BSC, k_BSR = past_BSA.split([self.latent, self.rope_dims], dim=-1)
        kv_BSHx = self.kv_b_proj(latent_BSC).unflatten(-1, (self.heads, self.nope + self.value))
        k_BSHP, v_BSHV = kv_BSHx.split([self.nope, self.value], dim=-1)
        k_BSHR = k_BSR[:, :, None].expand(-1, -1, self.heads, -1)
        q = torch.cat([q_BTHP, q_BTHR], dim=-1).transpose(1, 2)
        k = torch.cat([k_BSHP, k_BSHR], dim=-1).transpose(1, 2)
        mask = None if visible_BTS is None else visible_BTS[:, None]
        y = F.scaled_dot_product_attention(
            q, k, v_BSHV.transpose(1, 2), attn_mask=mask, is_causal=mask is None, scale=self.scale
        )
        return y.transpose(1, 2)

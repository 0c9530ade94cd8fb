"""Multi-head latent attention (V2 report, section 2.1; V3 report, section 2.1.1; official inference/model.py `MLA`).

Legend: B sequences, T new tokens, S cache length, D hidden, H heads, C kv latent rank, R rope dims, P no-rope dims,
Q = P + R, V value dims, A = C + R what is cached a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsv3rt.interfaces import Cache, Site
from dsv3rt.model.norm import RMSNorm
from dsv3rt.model.rope import Rope, rotate
from dsv3rt_mla import blockwise, native
from dsv3rt_mla.cache import E4M3, LatentCache
from dsv3rt_mla.forms import Heads, absorbed, expanded

LATENT_EPS = 1e-6
"""The official reference uses it for the two latent norms whatever rms_norm_eps says."""


class LatentAttention(nn.Module):
    """Caches one latent and one shared rope key a token, never the expanded keys and values.

    Absorbed form (few new tokens): queries are taken into the latent space, attention runs over the latents themselves.
    Expanded form (prefill, training): the latents are expanded into keys and values.
    On the CPU both are operators that read no more of the cache than is used; elsewhere, and without a cache, both are
    plain torch.
    """

    no_scale: Tensor

    def __init__(self, site: Site) -> None:
        super().__init__()
        config, linear = site.config, site.quantization.linear
        self.at = Heads(
            config.num_attention_heads,
            config.kv_lora_rank,
            config.qk_rope_head_dim,
            config.qk_nope_head_dim,
            config.v_head_dim,
            config.softmax_scale,
        )
        self.interleaved = config.rope_interleave
        self.layout = LatentCache(config.kv_lora_rank, config.qk_rope_head_dim, site.cache_dtype)
        self.cache_bytes_per_token = self.layout.bytes_per_token
        self.on_cpu = site.device.type == "cpu"
        self.native = self.on_cpu and native.library() is not None
        self.reads_only_used = self.on_cpu
        """Whether the whole cache may be given to `forward`, however little of it is used."""
        self.rope = Rope(config)
        self.register_buffer("no_scale", torch.empty(0, device="cpu"), persistent=False)

        def make(name: str, rows: int, columns: int, *, bias: bool = False) -> nn.Module:
            return linear(columns, rows, prefix=f"{site.prefix}.{name}", bias=bias)

        hidden, rank, bias = config.hidden_size, config.q_lora_rank, config.attention_bias
        query_rows = self.at.heads * config.qk_head_dim
        if rank is None:
            self.q_proj = make("q_proj", query_rows, hidden)
        else:
            self.q_a_proj = make("q_a_proj", rank, hidden, bias=bias)
            self.q_a_layernorm = RMSNorm(rank, LATENT_EPS)
            self.q_b_proj = make("q_b_proj", query_rows, rank)
        self.q_lora = rank is not None
        self.kv_a_proj_with_mqa = make("kv_a_proj_with_mqa", self.at.latent + self.at.rope, hidden, bias=bias)
        self.kv_a_layernorm = RMSNorm(self.at.latent, LATENT_EPS)
        self.kv_b_proj = make("kv_b_proj", self.at.heads * (self.at.nope + self.at.value), self.at.latent)
        self.o_proj = make("o_proj", hidden, self.at.heads * self.at.value, bias=bias)

    def make_cache(self, batch: int, capacity: int, device: torch.device) -> Cache:
        return self.layout.make(batch, capacity, device)

    def forward(self, x_BTD: Tensor, positions_BT: Tensor, cache: Cache | None) -> Tensor:
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD))) if self.q_lora else self.q_proj(x_BTD)
        kv_BTA = self.kv_a_proj_with_mqa(x_BTD)
        if cache is not None and self.on_cpu:
            y = self.operator(q, kv_BTA, positions_BT, cache)
        else:
            y = self.plain(q, kv_BTA, positions_BT, cache)
        y_BTD: Tensor = self.o_proj(y)
        return y_BTD

    def remember(self, x_BTD: Tensor, positions_BT: Tensor, cache: Cache) -> None:
        """What `forward` leaves in the cache, without attending; see `interfaces.Remembers`."""
        latents = self.latents(self.kv_a_proj_with_mqa(x_BTD), *self.rope(positions_BT))
        self.layout.write(cache, positions_BT, *latents)

    def operator(self, q: Tensor, kv_BTA: Tensor, positions_BT: Tensor, cache: Cache) -> Tensor:
        """Through an operator: [B, T, H*V]."""
        weight, scale = self.expansion()
        decoding = self.native and q.shape[1] <= native.DECODE_UP_TO
        y = (native.decode if decoding else blockwise.attend)(
            q.float().contiguous(),
            kv_BTA.float().contiguous(),
            self.kv_a_layernorm.weight,
            positions_BT,
            self.rope.inv_freq,
            weight,
            scale,
            cache,
            heads=self.at.heads,
            nope=self.at.nope,
            eps=LATENT_EPS,
            magnitude=self.rope.magnitude,
            scale=self.at.scale,
            interleaved=self.interleaved,
        )
        return y.to(q.dtype)

    def latents(self, kv_BTA: Tensor, cos_BTR: Tensor, sin_BTR: Tensor) -> tuple[Tensor, Tensor]:
        """The normed latents [B, T, C] and turned rope keys [B, T, R] of new tokens."""
        latent_BTC, k_BTR = kv_BTA.split([self.at.latent, self.at.rope], dim=-1)
        return self.kv_a_layernorm(latent_BTC), rotate(k_BTR, cos_BTR, sin_BTR, interleaved=self.interleaved)

    def expansion(self) -> tuple[Tensor, Tensor]:
        """kv_b_proj's matrix as it is stored, and its scales, where the operators understand both; else in float32."""
        weight, scale = getattr(self.kv_b_proj, "weight", None), getattr(self.kv_b_proj, "weight_scale_inv", None)
        plain = (torch.float32, torch.bfloat16, torch.float16)
        if isinstance(weight, Tensor) and scale is None and weight.dtype in plain:
            return weight, self.no_scale
        if (
            isinstance(weight, Tensor)
            and isinstance(scale, Tensor)
            and weight.dtype == E4M3
            and scale.dtype == torch.float32
        ):
            return weight, scale
        return self.kv_b_proj.dequantized(torch.float32), self.no_scale  # type: ignore[operator]

    def plain(self, q: Tensor, kv_BTA: Tensor, positions_BT: Tensor, cache: Cache | None) -> Tensor:
        """Through torch's own functions, over the whole of the cache that is given: [B, T, H*V]."""
        at = self.at
        cos, sin = self.rope(positions_BT)
        q_BTHP, q_BTHR = q.unflatten(-1, (at.heads, at.nope + at.rope)).split([at.nope, at.rope], dim=-1)
        q_BTHR = rotate(q_BTHR, cos[:, :, None], sin[:, :, None], interleaved=self.interleaved)
        q_BTHQ = torch.cat([q_BTHP, q_BTHR], dim=-1)
        latent_BTC, k_BTR = self.latents(kv_BTA, cos, sin)
        if cache is None:
            kv_BTHx = self.kv_b_proj(latent_BTC).unflatten(-1, (at.heads, at.nope + at.value))
            return expanded(q_BTHQ, kv_BTHx, k_BTR, None, at).flatten(-2)
        self.layout.write(cache, positions_BT, latent_BTC, k_BTR)
        slots_S = torch.arange(cache[0].shape[1], device=q.device)
        visible_BTS = slots_S <= positions_BT[..., None]
        # stale slots may hold anything, NaN included, and 0 * NaN is NaN
        used_BS1 = visible_BTS[:, -1, :, None]
        past_BSA = torch.where(used_BS1, self.layout.read(cache, 0, cache[0].shape[1], q.dtype), 0)
        if q.shape[1] <= native.DECODE_UP_TO:
            return absorbed(q_BTHQ, past_BSA, visible_BTS, self.kv_b_proj.dequantized(q.dtype), at).flatten(-2)  # type: ignore[operator]
        kv_BSHx = self.kv_b_proj(past_BSA[..., : at.latent]).unflatten(-1, (at.heads, at.nope + at.value))
        return expanded(q_BTHQ, kv_BSHx, past_BSA[..., at.latent :], visible_BTS, at).flatten(-2)

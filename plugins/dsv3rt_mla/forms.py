"""The two forms of latent attention in plain torch, over a whole window of the cache: differentiable, on any device.

Legend: B sequences, T new tokens, S tokens attended to, H heads, C kv latent rank, R rope dims, A = C + R,
P no-rope dims, Q = P + R, V value dims.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Heads:
    """What both forms need to know."""

    heads: int
    latent: int
    rope: int
    nope: int
    value: int
    scale: float
    """Multiplies the scores: softmax scale, YaRN's factor included."""


def absorbed(q_BTHQ: Tensor, past_BSA: Tensor, visible_BTS: Tensor, weight: Tensor, at: Heads) -> Tensor:
    """Attention in the latent space: q k = (q_nope W_k) latent + q_rope k_rope. `weight` is kv_b [H*(P+V), C].

    Returns [B, T, H, V].
    """
    key_HPC, value_HVC = weight.unflatten(0, (at.heads, at.nope + at.value)).split([at.nope, at.value], dim=1)
    q_BTHC = torch.einsum("bthp,hpc->bthc", q_BTHQ[..., : at.nope], key_HPC)
    q_BTHA = torch.cat([q_BTHC, q_BTHQ[..., at.nope :]], dim=-1)
    scores_BHTS = torch.einsum("btha,bsa->bhts", q_BTHA, past_BSA).float() * at.scale
    probs_BHTS = scores_BHTS.masked_fill(~visible_BTS[:, None], float("-inf")).softmax(dim=-1).to(past_BSA.dtype)
    context_BTHC = torch.einsum("bhts,bsc->bthc", probs_BHTS, past_BSA[..., : at.latent])
    return torch.einsum("bthc,hvc->bthv", context_BTHC, value_HVC)


def expanded(q_BTHQ: Tensor, kv_BSHx: Tensor, k_BSR: Tensor, visible_BTS: Tensor | None, at: Heads) -> Tensor:
    """Attention over keys and values, kv_BSHx [B, S, H, P+V], by torch's scaled_dot_product_attention; -> [B, T, H, V].

    `visible_BTS` None means causal, T = S.
    """
    k_BSHP, v_BSHV = kv_BSHx.split([at.nope, at.value], dim=-1)
    k_BSHR = k_BSR[:, :, None].expand(-1, -1, at.heads, -1)
    k = torch.cat([k_BSHP, k_BSHR], dim=-1).transpose(1, 2)
    mask = None if visible_BTS is None else visible_BTS[:, None]
    y = F.scaled_dot_product_attention(
        q_BTHQ.transpose(1, 2), k, v_BSHV.transpose(1, 2), attn_mask=mask, is_causal=mask is None, scale=at.scale
    )
    return y.transpose(1, 2)

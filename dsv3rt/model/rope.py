"""Rotary position embedding with DeepSeek's interleaved pairs and YaRN.

Legend: B sequences, T tokens, R rope dims, H heads.
Sources: official inference/model.py (`precompute_freqs_cis`, `apply_rotary_emb`); YaRN, arXiv 2309.00071.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dsv3rt.config import ModelConfig


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """float32 [R/2]: the angle a position adds to each pair, YaRN's interpolation included."""
    dim = config.qk_rope_head_dim
    base = 1.0 / (config.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim))
    yarn = config.yarn
    if yarn is None:
        return base

    def correction_dim(rotations: float) -> float:
        context = yarn.original_max_position_embeddings
        return dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(correction_dim(yarn.beta_fast)), 0)
    high = min(math.ceil(correction_dim(yarn.beta_slow)), dim - 1)
    span = (high - low) or 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / span).clamp(0, 1)
    return base / yarn.factor * ramp + base * (1 - ramp)


class Rope(nn.Module):
    """Positions -> (cos, sin), each float32 [B, T, R/2], with YaRN's magnitude folded in."""

    inv_freq: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("inv_freq", inverse_frequencies(config), persistent=False)
        self.magnitude = config.yarn.cos_sin_factor if config.yarn else 1.0

    def forward(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        angles_BTR = positions_BT[..., None].float() * self.inv_freq
        return angles_BTR.cos() * self.magnitude, angles_BTR.sin() * self.magnitude


def rotate(x_R: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Rotate the pairs of the last dimension: (x0,x1),(x2,x3).. when interleaved, else (x0,x_{R/2}),...

    The result is always laid out in halves (all first members, then all second ones): queries and keys agree on it,
    and only their products matter.
    """
    if interleaved:
        first, second = x_R[..., 0::2], x_R[..., 1::2]
    else:
        first, second = x_R.chunk(2, dim=-1)
    first, second = first.float(), second.float()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_R.dtype)

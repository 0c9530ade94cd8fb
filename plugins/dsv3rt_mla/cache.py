"""What a token leaves behind: its latent and its shared rope key, in one of two layouts.

Legend: B sequences, T new tokens, n tokens read, S capacity, C kv latent rank, R rope dims, A = C + R.

- float32, bfloat16: one tensor [B, S, A], latent then rope key.
- float8_e4m3fn: latents [B, S, C] e4m3, their scales [B, S, 1] float32, rope keys [B, S, R] bfloat16. A latent is
  stored x scale, scale = greatest |latent| of the token / 448 (1 where all are zero). Rope keys stay in 16 bits: they
  are not normalised, and what a position turns them by would be lost in 3 bits of mantissa.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3rt.errors import UsageError
from dsv3rt.interfaces import Cache

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0


class LatentCache:
    """A cache layout: makes, writes and reads; plain torch."""

    def __init__(self, latent: int, rope_dims: int, dtype: torch.dtype) -> None:
        if dtype not in (torch.float32, torch.bfloat16, E4M3):
            raise UsageError(f"the latent cache cannot be {dtype}", fix="known: float32, bfloat16, float8_e4m3fn")
        self.latent, self.rope_dims, self.dtype = latent, rope_dims, dtype
        self.fp8 = dtype == E4M3
        self.bytes_per_token = latent + 4 + 2 * rope_dims if self.fp8 else (latent + rope_dims) * dtype.itemsize

    def make(self, batch: int, capacity: int, device: torch.device) -> Cache:
        """Uninitialised: untouched pages cost no memory, so a long context is paid for as it is used."""

        def empty(size: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(batch, capacity, size, dtype=dtype, device=device)

        if not self.fp8:
            return (empty(self.latent + self.rope_dims, self.dtype),)
        return empty(self.latent, E4M3), empty(1, torch.float32), empty(self.rope_dims, torch.bfloat16)

    def write(self, cache: Cache, positions_BT: Tensor, latent_BTC: Tensor, rope_BTR: Tensor) -> None:
        """In place, at the tokens' positions."""
        if self.fp8:
            wide_BTC = latent_BTC.float()
            scale_BT1 = wide_BTC.abs().amax(dim=-1, keepdim=True) / E4M3_MAX
            scale_BT1 = torch.where(scale_BT1 > 0, scale_BT1, 1.0)
            parts = [(wide_BTC / scale_BT1).to(E4M3).view(torch.uint8), scale_BT1, rope_BTR]
            targets = [cache[0].view(torch.uint8), cache[1], cache[2]]
        else:
            parts, targets = [torch.cat([latent_BTC, rope_BTR], dim=-1)], [cache[0]]
        rows = torch.arange(positions_BT.shape[0], device=positions_BT.device)[:, None]
        for part, target in zip(parts, targets, strict=True):
            target.index_put_((rows, positions_BT), part.to(target.dtype))

    def read(self, cache: Cache, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        """Tokens begin..end-1 as [B, n, A] of `dtype`."""
        if not self.fp8:
            return cache[0][:, begin:end].to(dtype)
        latent_BnC = cache[0][:, begin:end].float() * cache[1][:, begin:end]
        return torch.cat([latent_BnC.to(dtype), cache[2][:, begin:end].to(dtype)], dim=-1)

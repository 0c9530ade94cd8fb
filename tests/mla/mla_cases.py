"""Random cases of latent attention, and their answers in float64: the V2 report's equations 9-19, one head at a time.

Legend: T tokens, H heads, C kv latent rank, R rope dims, A = C + R, P no-rope dims, V value dims, X = H * (P + R).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from dsv3rt_mla import native
from dsv3rt_mla.cache import LatentCache
from torch import Tensor

from dsv3rt.interfaces import Cache

E4M3 = torch.float8_e4m3fn
EPS = 1e-6
FORMATS = [torch.float32, torch.bfloat16, torch.float16, E4M3]
CACHES = [torch.float32, torch.bfloat16, E4M3]


@dataclass(frozen=True)
class Sizes:
    heads: int
    latent: int
    rope: int
    nope: int
    value: int


def rotate(x_R: Tensor, position: int, inv_freq: Tensor, magnitude: float, interleaved: bool) -> Tensor:
    """Rotate each pair by position * inv_freq, as complex numbers."""
    half = x_R.shape[-1] // 2
    pairs = x_R.view(half, 2) if interleaved else x_R.view(2, half).T
    # angles are float32 products, as in transformers and the official reference
    angle = (torch.tensor(float(position)) * inv_freq).double()
    x = torch.complex(pairs[:, 0].double(), pairs[:, 1].double())
    turned = x * torch.polar(torch.full_like(angle, magnitude), angle)
    return torch.cat([turned.real, turned.imag])


def latent_row(kv: Tensor, norm: Tensor, eps: float, sizes: Sizes) -> Tensor:
    """What is cached of a token, but for the rope key: the normalised latent [C]."""
    x = kv[: sizes.latent].double()
    return x / (x.square().mean() + eps).sqrt() * norm.double()


def attend(
    q_TX: Tensor,
    first: int,
    past_SC: Tensor,
    keys_SR: Tensor,
    kv_b: Tensor,
    inv_freq: Tensor,
    *,
    sizes: Sizes,
    magnitude: float,
    scale: float,
    interleaved: bool,
) -> Tensor:
    """[T, H*V] in float64 for queries at positions first.. over latents and rotated rope keys of positions 0.. ."""
    width = sizes.nope + sizes.rope
    per_head = kv_b.double().view(sizes.heads, sizes.nope + sizes.value, sizes.latent)
    out = []
    for t, q_X in enumerate(q_TX.double()):
        position = first + t
        heads = []
        for h in range(sizes.heads):
            q = q_X[h * width : (h + 1) * width]
            q_rope = rotate(q[sizes.nope :], position, inv_freq, magnitude, interleaved)
            k_SP = past_SC[: position + 1] @ per_head[h, : sizes.nope].T
            v_SV = past_SC[: position + 1] @ per_head[h, sizes.nope :].T
            scores_S = (k_SP @ q[: sizes.nope] + keys_SR[: position + 1] @ q_rope) * scale
            heads.append(scores_S.softmax(0) @ v_SV)
        out.append(torch.cat(heads))
    return torch.stack(out)


@dataclass
class Case:
    """Weights and the inputs of `total` consecutive tokens."""

    sizes: Sizes
    q_TX: Tensor
    kv_TA: Tensor
    norm: Tensor
    inv_freq: Tensor
    kv_b: Tensor
    kv_b_scale: Tensor
    layout: LatentCache
    magnitude: float = 1.1
    scale: float = 0.2
    interleaved: bool = True

    @property
    def dequantized(self) -> Tensor:
        if self.kv_b.dtype != E4M3:
            return self.kv_b.double()
        rows, columns = self.kv_b.shape
        scale = self.kv_b_scale.double().repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
        return self.kv_b.double() * scale

    def cache(self, capacity: int, batch: int = 1) -> Cache:
        """Full of NaN: whoever reads a slot that was not written is found out."""
        cache = self.layout.make(batch, capacity, torch.device("cpu"))
        for part in cache:
            part.view(torch.uint8).fill_(0xFF)
        return cache

    def run(self, cache: Cache, first: int, last: int) -> Tensor:
        """Tokens first..last-1 at their positions -> [T, H*V]."""
        return self.attend(
            native.decode,
            self.q_TX[None, first:last],
            self.kv_TA[None, first:last],
            torch.arange(first, last)[None],
            cache,
        )[0]

    def attend(self, through: Callable[..., Tensor], q: Tensor, kv: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        return through(
            q,
            kv,
            self.norm,
            positions,
            self.inv_freq,
            self.kv_b,
            self.kv_b_scale,
            cache,
            heads=self.sizes.heads,
            nope=self.sizes.nope,
            eps=EPS,
            magnitude=self.magnitude,
            scale=self.scale,
            interleaved=self.interleaved,
        )

    def prefill(self, cache: Cache, upto: int) -> None:
        for first in range(0, upto, 16):
            self.run(cache, first, min(first + 16, upto))

    def expected_cache(self, total: int) -> Tensor:
        """float64 [total, A], before it is narrowed."""
        rows = []
        for t in range(total):
            key = rotate(self.kv_TA[t, self.sizes.latent :], t, self.inv_freq, self.magnitude, self.interleaved)
            rows.append(torch.cat([latent_row(self.kv_TA[t], self.norm, EPS, self.sizes), key]))
        return torch.stack(rows)

    def expected(self, cache: Cache, first: int, last: int) -> Tensor:
        """float64 attention over what the cache holds."""
        past = self.layout.read(cache, 0, last, torch.float64)[0]
        return attend(
            self.q_TX[first:last],
            first,
            past[:, : self.sizes.latent],
            past[:, self.sizes.latent :],
            self.dequantized,
            self.inv_freq,
            sizes=self.sizes,
            magnitude=self.magnitude,
            scale=self.scale,
            interleaved=self.interleaved,
        )


def make_case(sizes: Sizes, total: int, weight: torch.dtype, cache: torch.dtype, seed: int = 0, **more: object) -> Case:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    rows = sizes.heads * (sizes.nope + sizes.value)
    kv_b, scale = normal(rows, sizes.latent) * sizes.latent**-0.5, torch.empty(0)
    if weight == E4M3:
        scale = torch.rand(-(-rows // 128), -(-sizes.latent // 128), generator=random) * 0.01 + 0.005
        kv_b = kv_b * 100
    return Case(
        sizes,
        q_TX=normal(total, sizes.heads * (sizes.nope + sizes.rope)),
        kv_TA=normal(total, sizes.latent + sizes.rope) * 2,
        norm=torch.rand(sizes.latent, generator=random) + 0.5,
        inv_freq=10000.0 ** -(torch.arange(sizes.rope // 2) / (sizes.rope // 2)),
        kv_b=kv_b.to(weight),
        kv_b_scale=scale,
        layout=LatentCache(sizes.latent, sizes.rope, cache),
        **more,  # type: ignore[arg-type]
    )


SMALL = Sizes(heads=4, latent=64, rope=16, nope=32, value=24)
ODD = Sizes(heads=5, latent=150, rope=6, nope=27, value=31)
TILED = Sizes(heads=18, latent=96, rope=32, nope=8, value=8)
"""What is attended to by tiles where there are such: rows and columns that do not fill the last ones."""
EIGHT = Sizes(heads=8, latent=64, rope=32, nope=8, value=8)
"""What is attended to by pairs of columns where there is AVX-512: rows are half a vector, or whole ones."""

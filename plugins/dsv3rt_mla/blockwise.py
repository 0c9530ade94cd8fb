"""Prefill on the CPU: the expanded form, a block of the cache and a group of heads at a time, as one operator.

Only what is used of the cache is read, and nothing of the context's size is ever held but the latents: keys, values and
scores exist for one block and one group. How many tokens are used is the operator's own affair, so shapes around it are
static.

It is plain torch, so it also stands in for the native decoding operators where they cannot be built.

Legend: T new tokens, n tokens of a block, H heads (g of a group), C kv latent rank, R rope dims, A = C + R,
P no-rope dims, Q = P + R, V value dims.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dsv3rt.interfaces import Cache
from dsv3rt.model.rope import rotate
from dsv3rt.native import rms_norm
from dsv3rt_mla.cache import E4M3, LatentCache
from dsv3rt_mla.forms import Heads, absorbed
from dsv3rt_mla.native import fake_attend

BLOCK = 512
"""Tokens of the cache attended to at a time."""
GROUP_SCORES = 1 << 20
"""Scores held at a time: 4 MB, which stays in a core's share of the cache."""
ABSORB_UP_TO = 16


def dequantize(weight: Tensor, scale: Tensor) -> Tensor:
    """float32; `scale` of e4m3's 128x128 blocks (not looked at for other dtypes)."""
    if weight.dtype != E4M3:
        return weight.float()
    rows, columns = weight.shape
    return weight.float() * scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]


def _expanded(q_THQ: Tensor, read: Callable[[int, int], Tensor], start: int, weight: Tensor, at: Heads) -> Tensor:
    """[T, H, V] for scaled queries at positions start..; read(begin, end) gives latents [n, A]. Online softmax."""
    tokens, end = q_THQ.shape[0], start + q_THQ.shape[0]
    per_head = weight.view(at.heads, at.nope + at.value, at.latent)
    group = max(1, min(at.heads, GROUP_SCORES // (tokens * min(BLOCK, end))))
    y_HTV = q_THQ.new_empty(at.heads, tokens, at.value)
    positions_T1 = torch.arange(start, end)[:, None]
    for head in range(0, at.heads, group):
        matrix = per_head[head : head + group].flatten(0, 1).float()
        q_gTQ = q_THQ[:, head : head + group].transpose(0, 1)
        heads = q_gTQ.shape[0]
        q_nope, q_rope = q_gTQ[..., : at.nope], q_gTQ[..., at.nope :].reshape(heads * tokens, at.rope)
        most = total = out = torch.empty(0)
        for begin in range(0, end, BLOCK):
            past_nA = read(begin, min(begin + BLOCK, end))
            kv_gnx = (past_nA[:, : at.latent] @ matrix.T).unflatten(1, (heads, -1)).transpose(0, 1)
            scores = torch.bmm(q_nope, kv_gnx[..., : at.nope].transpose(1, 2))
            scores.view(heads * tokens, -1).addmm_(q_rope, past_nA[:, at.latent :].T)
            if begin + past_nA.shape[0] > start + 1:
                hidden_Tn = torch.arange(begin, begin + past_nA.shape[0]) > positions_T1
                scores.masked_fill_(hidden_Tn, float("-inf"))
            # every token sees position 0, so after the first block `most` is finite
            now = scores.amax(-1, keepdim=True) if begin == 0 else torch.maximum(most, scores.amax(-1, keepdim=True))
            probs = scores.sub_(now).exp_()
            values = kv_gnx[..., at.nope :]
            if begin == 0:
                total, out = probs.sum(-1, keepdim=True), torch.bmm(probs, values)
            else:
                keep = (most - now).exp_()
                total = total.mul_(keep).add_(probs.sum(-1, keepdim=True))
                out.mul_(keep).baddbmm_(probs, values)
            most = now
        y_HTV[head : head + group] = out / total
    return y_HTV.transpose(0, 1)


def _attend(
    q: Tensor,
    kv: Tensor,
    norm: Tensor,
    positions: Tensor,
    inv_freq: Tensor,
    kv_b: Tensor,
    kv_b_scale: Tensor,
    latents: Tensor,
    scales: Tensor | None,
    rope_keys: Tensor | None,
    heads: int,
    nope: int,
    eps: float,
    magnitude: float,
    scale: float,
    interleaved: bool,
) -> Tensor:
    rope = 2 * inv_freq.shape[0]
    latent = kv.shape[-1] - rope
    at = Heads(heads, latent, rope, nope, kv_b.shape[0] // heads - nope, 1.0)
    cache: Cache = (latents,) if scales is None or rope_keys is None else (latents, scales, rope_keys)
    layout = LatentCache(latent, rope, latents.dtype)
    angles = positions[..., None].float() * inv_freq
    cos, sin = angles.cos() * magnitude, angles.sin() * magnitude
    key = rotate(kv[..., latent:], cos, sin, interleaved=interleaved)
    layout.write(cache, positions, rms_norm(kv[..., :latent], norm, eps), key)
    q_nope, q_rope = q.unflatten(-1, (heads, nope + rope)).split([nope, rope], dim=-1)
    q_rope = rotate(q_rope, cos[:, :, None], sin[:, :, None], interleaved=interleaved)
    q_BTHQ = torch.cat([q_nope, q_rope], dim=-1).mul_(scale)

    weight = dequantize(kv_b, kv_b_scale) if kv_b.dtype == E4M3 else kv_b
    y = []
    for b, q_THQ in enumerate(q_BTHQ):
        own = tuple(part[b : b + 1] for part in cache)

        def read(begin: int, end: int, own: Cache = own) -> Tensor:
            return layout.read(own, begin, end, torch.float32)[0]

        start = int(positions[b, 0])
        if q_THQ.shape[0] <= ABSORB_UP_TO:
            past_SA = read(0, start + q_THQ.shape[0])
            visible_TS = torch.arange(past_SA.shape[0]) <= positions[b, :, None]
            y.append(absorbed(q_THQ[None], past_SA[None], visible_TS[None], weight.float(), at)[0])
        else:
            y.append(_expanded(q_THQ, read, start, weight, at))
    return torch.stack(y).flatten(-2).contiguous()


# not `torch.library.custom_op`: the first call of one imports torch's compiler, two seconds in the middle of an answer
torch.library.define(
    "dsv3rt::mla_attend", torch.library.infer_schema(_attend, mutates_args=("latents", "scales", "rope_keys"))
)
torch.library.impl("dsv3rt::mla_attend", "CPU", _attend)
torch.library.register_fake("dsv3rt::mla_attend", fake_attend)


def attend(
    q: Tensor,
    kv: Tensor,
    norm: Tensor,
    positions: Tensor,
    inv_freq: Tensor,
    kv_b: Tensor,
    kv_b_scale: Tensor,
    cache: Cache,
    *,
    heads: int,
    nope: int,
    eps: float,
    magnitude: float,
    scale: float,
    interleaved: bool,
) -> Tensor:
    """As `native.decode`, for any number of new tokens; `positions` of a sequence must be consecutive."""
    latents, scales, rope_keys = cache if len(cache) == 3 else (cache[0], None, None)
    y: Tensor = torch.ops.dsv3rt.mla_attend(
        q, kv, norm, positions, inv_freq, kv_b, kv_b_scale, latents, scales, rope_keys,
        heads, nope, eps, magnitude, scale, interleaved,
    )  # fmt: skip
    return y

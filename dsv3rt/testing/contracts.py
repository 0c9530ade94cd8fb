"""The contract of each slot as one function, for plugin authors: it raises AssertionError with what is wrong.

Legend: B sequences, T tokens, N = B*T tokens, D hidden, E experts, K chosen experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dsv3rt.assembly import build, resolve_plan
from dsv3rt.config import ModelConfig
from dsv3rt.interfaces import LoadsItself
from dsv3rt.plugin_manager import discover

SMALL = ModelConfig(
    model_type="deepseek_v3",
    vocab_size=97,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    kv_lora_rank=32,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=24,
    q_lora_rank=40,
    n_routed_experts=8,
    n_shared_experts=1,
    num_experts_per_tok=3,
    moe_intermediate_size=32,
    first_k_dense_replace=1,
    n_group=2,
    topk_group=1,
    routed_scaling_factor=2.5,
    max_position_embeddings=256,
    torch_dtype="float32",
)
"""Every part of the family at once, in a size that computes in microseconds."""


class RandomSource:
    """A TensorSource that invents every tensor it is asked for: the same name gives the same values."""

    def __init__(self) -> None:
        self._made: dict[str, Tensor] = {}

    def names(self) -> Sequence[str]:
        return tuple(self._made)

    def __contains__(self, name: str) -> bool:
        return not name.endswith("weight_scale_inv")

    def get(self, name: str, *, shape: Sequence[int] | None = None) -> Tensor:
        if name not in self._made:
            assert shape is not None, f"{name} was asked for without its shape"
            generator = torch.Generator().manual_seed(len(name) * 7919 + sum(map(ord, name)))
            scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.1
            centre = 1.0 if name.endswith("norm.weight") else 0.0
            self._made[name] = centre + scale * torch.randn(*shape, generator=generator)
        return self._made[name]


def fill(module: nn.Module, prefix: str, source: Any) -> None:
    """Give a module built on meta random weights, as loading a checkpoint would."""
    if isinstance(module, LoadsItself):
        module.load_tensors(source, prefix, torch.device("cpu"))
        return
    for name, parameter in list(module.named_parameters(recurse=False)):
        tensor = source.get(f"{prefix}.{name}", shape=tuple(parameter.shape))
        setattr(module, name, nn.Parameter(tensor, requires_grad=False))
    for name, buffer in list(module.named_buffers(recurse=False)):
        if name not in module._non_persistent_buffers_set:
            module.register_buffer(name, source.get(f"{prefix}.{name}", shape=tuple(buffer.shape)))
    for name, child in module.named_children():
        fill(child, f"{prefix}.{name}", source)


def _assembled(config: ModelConfig, plugins: Sequence[Any], **slots: Any) -> Any:
    found = discover(plugins)
    model = build(resolve_plan(config, found, device="cpu", dtype="float32", head="none", **slots), found)
    source = RandomSource()
    for child, module in model.decoder.named_children():
        fill(module, child, source)
    left = [name for name, tensor in model.decoder.state_dict().items() if tensor.is_meta]
    assert not left, f"still on the meta device after loading: {left}; make transient buffers on the CPU"
    return model


@torch.no_grad()
def check_router(choice: str, *, plugins: Sequence[Any] = (), config: ModelConfig = SMALL) -> None:
    """Routing: shapes, dtypes, unique ids in range, token by token the same, no data-dependent Python."""
    router = _assembled(config, plugins, routing=choice).decoder.model.layers[config.first_k_dense_replace].mlp.gate
    x_ND = torch.randn(33, config.hidden_size, generator=torch.Generator().manual_seed(1))
    weights_NK, ids_NK = router(x_ND)
    expected = (33, config.num_experts_per_tok)
    assert tuple(weights_NK.shape) == expected, f"weights are {tuple(weights_NK.shape)}, not {expected}"
    assert tuple(ids_NK.shape) == expected, f"ids are {tuple(ids_NK.shape)}, not {expected}"
    assert weights_NK.dtype == torch.float32, f"weights are {weights_NK.dtype}, not float32"
    assert ids_NK.dtype == torch.int64, f"ids are {ids_NK.dtype}, not int64"
    assert bool(weights_NK.isfinite().all()), "weights are not finite"
    assert int(ids_NK.min()) >= 0 and int(ids_NK.max()) < config.n_routed_experts, "ids are out of range"
    assert all(len(set(row)) == len(row) for row in ids_NK.tolist()), "a token has the same expert twice"
    for n in range(0, 33, 8):
        alone_weights, alone_ids = router(x_ND[n : n + 1])
        assert torch.equal(alone_ids[0], ids_NK[n]), "a token's experts depend on the tokens beside it"
        torch.testing.assert_close(alone_weights[0], weights_NK[n], msg="a token's weights depend on those beside it")
    compiled: Any = torch.compile(router, fullgraph=True, backend="eager")
    compiled(x_ND)


@torch.no_grad()
def check_attention(choice: str, *, plugins: Sequence[Any] = (), config: ModelConfig = SMALL) -> None:
    """Attention: prefill of T tokens = T single steps = no cache at all; stale cache slots are never read."""
    attention = _assembled(config, plugins, attention=choice).decoder.model.layers[0].self_attn
    device = torch.device("cpu")
    tokens, capacity = 21, 64
    x_BTD = torch.randn(1, tokens, config.hidden_size, generator=torch.Generator().manual_seed(2))
    positions_BT = torch.arange(tokens)[None]

    def fresh() -> tuple[Tensor, ...]:
        cache: tuple[Tensor, ...] = attention.make_cache(1, capacity, device)
        assert all(part.shape[:2] == (1, capacity) for part in cache), "cache tensors must be [B, S, ...]"
        for part in cache:
            part.copy_(torch.full(part.shape, float("nan")))
        return cache

    whole = attention(x_BTD, positions_BT, fresh())
    assert whole.shape == x_BTD.shape, f"output is {tuple(whole.shape)}, not {tuple(x_BTD.shape)}"
    assert bool(whole.isfinite().all()), "stale cache slots are read"
    cache = fresh()
    steps = [attention(x_BTD[:, t : t + 1], positions_BT[:, t : t + 1], cache) for t in range(tokens)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(attention(x_BTD, positions_BT, None), whole, rtol=1e-3, atol=1e-4)
    stored = sum(part.nbytes for part in cache)
    assert attention.cache_bytes_per_token == stored // capacity, "cache_bytes_per_token is not what the cache takes"


@torch.no_grad()
def check_quantization(choice: str, *, plugins: Sequence[Any] = (), config: ModelConfig = SMALL) -> None:
    """Quantization: shapes, and the same result for a token alone and among others."""
    model = _assembled(replace(config, first_k_dense_replace=0), plugins, quantization=choice)
    moe = model.decoder.model.layers[0].mlp
    x_ND = torch.randn(9, config.hidden_size, generator=torch.Generator().manual_seed(3))
    together = model.decoder.lm_head(x_ND)
    for n in range(9):
        alone = model.decoder.lm_head(x_ND[n : n + 1])
        assert torch.equal(alone[0], together[n]), "linear: a token's result depends on the others"
    weights_NK, ids_NK = moe.gate(x_ND)
    together = moe.experts(x_ND, weights_NK, ids_NK)
    assert together.shape == x_ND.shape, f"experts give {tuple(together.shape)}, not {tuple(x_ND.shape)}"
    for n in range(9):
        alone = moe.experts(x_ND[n : n + 1], weights_NK[n : n + 1], ids_NK[n : n + 1])
        assert torch.equal(alone[0], together[n]), "experts: a token's result depends on the others"

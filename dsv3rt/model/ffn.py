"""Feed-forward: the dense SwiGLU network, and the mixture of experts (V3 report, section 2.1.2, equations 12-16).

Legend: B sequences, T tokens, N = B*T, D hidden, K chosen experts.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from dsv3rt.interfaces import FusesFFN, Quantization, RoutingObserver, Site


class FFN(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, quantization: Quantization, hidden: int, intermediate: int, *, prefix: str) -> None:
        super().__init__()
        self.gate_proj = quantization.linear(hidden, intermediate, prefix=f"{prefix}.gate_proj")
        self.up_proj = quantization.linear(hidden, intermediate, prefix=f"{prefix}.up_proj")
        self.down_proj = quantization.linear(intermediate, hidden, prefix=f"{prefix}.down_proj")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


def make_ffn(quantization: Quantization, hidden: int, intermediate: int, *, prefix: str) -> nn.Module:
    """The network as one module of the quantization's own, where it offers that (`interfaces.FusesFFN`)."""
    if isinstance(quantization, FusesFFN):
        return quantization.ffn(hidden, intermediate, prefix=prefix)
    return FFN(quantization, hidden, intermediate, prefix=prefix)


class MoE(nn.Module):
    """Routed experts chosen by the router (`gate`, the official name), plus the shared ones."""

    position_attributes = ("layer",)
    """What only says where this module sits: all layers of a kind share one compiled graph."""

    def __init__(self, site: Site, router: nn.Module, observers: tuple[RoutingObserver, ...] = ()) -> None:
        super().__init__()
        config, make = site.config, site.quantization
        self.layer = site.layer
        self.observers = observers
        self.gate = router
        self.experts = make.experts(
            config.n_routed_experts, config.hidden_size, config.moe_intermediate_size, prefix=f"{site.prefix}.experts"
        )
        self.shared_experts: nn.Module | None = None
        if config.n_shared_experts:
            width = config.moe_intermediate_size * config.n_shared_experts
            self.shared_experts = make_ffn(make, config.hidden_size, width, prefix=f"{site.prefix}.shared_experts")

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        weights_NK, ids_NK = self.gate(x_ND)
        for observe in self.observers:
            observe(self.layer, weights_NK, ids_NK)
        y_ND: Tensor = self.experts(x_ND, weights_NK, ids_NK)
        if self.shared_experts is not None:
            y_ND = y_ND + self.shared_experts(x_ND)
        return y_ND.view_as(x_BTD)

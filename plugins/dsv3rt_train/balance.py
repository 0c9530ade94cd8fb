"""Auxiliary-loss-free balancing: after each step an overloaded expert's bias goes down, an idle one's up (V3 report,
equation 16).

Legend: N tokens, K chosen experts, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LoadObserver:
    """Counts, by layer, how many tokens each expert received since `reset`. Padding does not count."""

    def __init__(self, experts: int) -> None:
        self.experts = experts
        self.real_N: Tensor | None = None
        """bool: which of the tokens now flowing are no padding (None: all)."""
        self.load_E: dict[int, Tensor] = {}

    def __call__(self, layer: int, weights_NK: Tensor, ids_NK: Tensor) -> None:
        ids = ids_NK if self.real_N is None else ids_NK[self.real_N]
        load_E = torch.bincount(ids.reshape(-1), minlength=self.experts)
        self.load_E[layer] = self.load_E[layer] + load_E if layer in self.load_E else load_E

    def reset(self) -> None:
        self.load_E = {}

    def shares(self) -> dict[int, list[float]]:
        """By layer: every expert's load, as a multiple of the mean load."""
        means = {layer: load_E.float().mean().clamp_min(1e-9) for layer, load_E in self.load_E.items()}
        return {layer: (load_E / means[layer]).tolist() for layer, load_E in sorted(self.load_E.items())}

    def busiest(self) -> dict[int, float]:
        """By layer: the load of the busiest expert, as a multiple of the mean load."""
        return {layer: max(loads) for layer, loads in self.shares().items()}


@torch.no_grad()
def update_biases(routers: dict[int, nn.Module], observer: LoadObserver, speed: float) -> None:
    """Move each correction bias by `speed` times the sign of (mean load - its expert's load)."""
    if not speed:
        return
    for layer, router in routers.items():
        bias_E = getattr(router, "e_score_correction_bias", None)
        if bias_E is not None and layer in observer.load_E:
            load_E = observer.load_E[layer].float()
            bias_E.add_(torch.sign(load_E.mean() - load_E), alpha=speed)

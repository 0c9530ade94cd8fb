"""AdamW, and Muon for the matrices inside the layers (K. Jordan, 2024; scaled as in "Muon is Scalable", arXiv
2502.16982).

Muon replaces a matrix's momentum by the nearest orthogonal matrix (Newton-Schulz iteration), times
0.2 sqrt(max(rows, columns)) so that one learning rate serves both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """[..., m, n] -> roughly U V^T of each matrix's singular value decomposition (quintic Newton-Schulz)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[-2] > g.shape[-1]
    x = g.mT if tall else g
    x = x.reshape(-1, *x.shape[-2:])
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        # x = a x + (b gram + c gram gram) x, sums made by the products
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).reshape(g.shape)


class Muon(torch.optim.Optimizer):
    """For parameters [..., m, n]; `halves` of a group says that rows come in so many stacked matrices."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        steps: int = 5,
    ) -> None:
        super().__init__(
            groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": steps, "halves": 1}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].mul_(group["momentum"]).add_(parameter.grad)
                direction = parameter.grad.add(momentum, alpha=group["momentum"])
                split = direction.unflatten(-2, (group["halves"], -1))
                update = orthogonalise(split, group["steps"]).reshape(parameter.shape)
                scale = 0.2 * math.sqrt(max(split.shape[-2:]))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * scale)


def _kind(name: str, parameter: nn.Parameter) -> str:
    if parameter.dim() >= 2 and not any(part in name for part in ("embed_tokens", "lm_head", "mlp.gate.weight")):
        return "matrix"
    return "table" if parameter.dim() >= 2 else "vector"


def make_optimizers(
    named: Iterable[tuple[str, nn.Parameter]],
    *,
    name: str,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.95),
) -> list[torch.optim.Optimizer]:
    """`adamw`, or `muon` with AdamW for embeddings, head, router and vectors. Vectors are never decayed."""
    kinds: dict[str, list[tuple[str, nn.Parameter]]] = {"matrix": [], "table": [], "vector": []}
    for label, parameter in named:
        if parameter.requires_grad:
            kinds[_kind(label, parameter)].append((label, parameter))
    decayed = [p for _, p in kinds["table"]] + ([p for _, p in kinds["matrix"]] if name == "adamw" else [])
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": [p for _, p in kinds["vector"]], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = []
    kept = [group for group in groups if group["params"]]
    if kept:
        optimizers.append(torch.optim.AdamW(kept, lr=lr, betas=betas, fused=True))
    if name == "muon" and kinds["matrix"]:
        stacked = [p for label, p in kinds["matrix"] if label.endswith("experts.gate_up")]
        plain = [p for label, p in kinds["matrix"] if not label.endswith("experts.gate_up")]
        muon_groups = [g for g in ({"params": plain, "halves": 1}, {"params": stacked, "halves": 2}) if g["params"]]
        optimizers.append(Muon(muon_groups, lr, weight_decay=weight_decay))
    return optimizers

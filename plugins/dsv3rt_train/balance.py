"""Two ways to keep experts equally busy (V3 report, section 2.1.2): after each step an overloaded expert's bias goes
down and an idle one's up (equation 16); and a small loss against imbalance within one sequence (equations 17-20).

Legend: B sequences, T tokens, N = B*T, K chosen experts, E experts, L layers (the prediction module's the last).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsv3rt.config import ModelConfig
from dsv3rt.errors import UsageError


class LoadObserver:
    """Counts, by layer, how many tokens each expert received since `reset`. Padding does not count.

    It changes one tensor in place and nothing else, so that a compiled block, which all layers share, can do it too.
    """

    def __init__(self, config: ModelConfig, device: str = "cpu") -> None:
        layers = config.num_hidden_layers + config.num_nextn_predict_layers
        self.load_LE = torch.zeros(layers, config.n_routed_experts, dtype=torch.int64, device=device)
        self.real_BT: Tensor | None = None
        """bool: which of the tokens now flowing are no padding (None: all)."""

    def __call__(self, layer: int, weights_NK: Tensor, ids_NK: Tensor) -> None:
        real_NK = torch.ones_like(ids_NK)
        if self.real_BT is not None:
            real_NK = real_NK * self.real_BT.reshape(-1, 1)
        load_E = torch.zeros_like(self.load_LE[0]).scatter_add(0, ids_NK.reshape(-1), real_NK.reshape(-1))
        self.load_LE[layer].add_(load_E)

    def reset(self) -> None:
        self.load_LE.zero_()

    def loads(self) -> dict[int, Tensor]:
        """float32 [E] of every layer that tokens passed through."""
        return {layer: load_E.float() for layer, load_E in enumerate(self.load_LE) if load_E.any()}

    def shares(self) -> dict[int, list[float]]:
        """By layer: every expert's load, as a multiple of the mean load."""
        return {layer: (load_E / load_E.mean()).tolist() for layer, load_E in self.loads().items()}

    def busiest(self) -> dict[int, float]:
        """By layer: the load of the busiest expert, as a multiple of the mean load."""
        return {layer: max(loads) for layer, loads in self.shares().items()}


@torch.no_grad()
def update_biases(routers: dict[int, nn.Module], observer: LoadObserver, speed: float) -> None:
    """Move each correction bias by `speed` times the sign of (mean load - its expert's load)."""
    if not speed:
        return
    loads = observer.loads()
    for layer, router in routers.items():
        bias_E = getattr(router, "e_score_correction_bias", None)
        if bias_E is not None and layer in loads:
            load_E = loads[layer]
            bias_E.add_(torch.sign(load_E.mean() - load_E), alpha=speed)


def sequence_balance(scores_BTE: Tensor, real_BT: Tensor, chosen: int) -> Tensor:
    """float32 [B]: sum_i f_i P_i of each sequence, padding left out; 1 where all experts are as likely as each other.

    f_i is the share of tokens that have expert i among their `chosen` best scores, times E / K; P_i is the mean of its
    score over the sum of all scores. Gradients reach the scores through P alone.
    """
    experts = scores_BTE.shape[-1]
    length_B1 = real_BT.sum(1, keepdim=True).clamp_min(1)
    best_BTE = torch.zeros_like(scores_BTE).scatter(-1, scores_BTE.topk(chosen, dim=-1).indices, 1.0)
    real_BT1 = real_BT[..., None]
    f_BE = (best_BTE * real_BT1).sum(1) * (experts / chosen) / length_B1
    p_BE = (scores_BTE / scores_BTE.sum(-1, keepdim=True) * real_BT1).sum(1) / length_B1
    return (f_BE * p_BE).sum(-1)


class SequenceBalance:
    """`sequence_balance` of every router that tokens pass through, left at the router until it is taken.

    Scores are computed a second time for it (a compiled block knows that they are the same).
    """

    def __init__(self, routers: dict[int, nn.Module], observer: LoadObserver, chosen: int) -> None:
        """`observer` knows the padding. Raises UsageError for a router without scores."""
        self._routers, self._observer, self._chosen = list(routers.values()), observer, chosen
        for router in self._routers:
            if not callable(getattr(router, "scores", None)):
                raise UsageError(f"{type(router).__name__} has no scores to balance", fix="leave --balance-weight 0")
            router.register_forward_hook(self._gather)

    def _gather(self, router: nn.Module, args: tuple[Tensor], routed: tuple[Tensor, Tensor]) -> None:
        (x_ND,) = args
        real_BT = self._observer.real_BT
        assert real_BT is not None
        scores_NE: Tensor = router.scores(x_ND)  # type: ignore[operator]
        scores_BTE = scores_NE.view(*real_BT.shape, -1)
        # no list: a compiled block would ask for its length, and be compiled for each
        router.imbalance = sequence_balance(scores_BTE, real_BT, self._chosen).mean()

    def take(self) -> Tensor:
        """The sum over layers of the mean over the sequences seen since the last call."""
        gathered = [router.__dict__.pop("imbalance") for router in self._routers if "imbalance" in router.__dict__]
        return torch.stack(gathered).sum()

"""Top-k routers with groups.

Legend: N tokens, D hidden, E experts, G groups, K chosen experts.
Sources: V3 report, equations 12-16 and section 2.1.2 (bias); official inference/model.py `Gate`; V2's
modeling_deepseek.py `MoEGate` (greedy, group_limited_greedy).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsv3rt.interfaces import Site
from dsv3rt_moe import native


def keep_best_groups(choice_NE: Tensor, group_scores_NG: Tensor, keep: int) -> Tensor:
    """Mask with -inf (biased scores can be negative) all experts outside the `keep` best groups."""
    groups = group_scores_NG.shape[-1]
    best_NG = group_scores_NG.topk(keep, dim=-1).indices
    allowed_NG = torch.zeros_like(group_scores_NG, dtype=torch.bool).scatter(-1, best_NG, True)
    allowed_NE = allowed_NG.repeat_interleave(choice_NE.shape[-1] // groups, dim=-1)
    return choice_NE.masked_fill(~allowed_NE, float("-inf"))


class _TopK(nn.Module):
    """What the routers share: the score matrix in float32, the weighting of the chosen, and the native operator.

    A token's experts and weights are the same, bit for bit, whether it is routed alone or among up to 16.
    """

    best_of_group = 0
    """A group is worth the sum of so many of its scores; 0: there are no groups."""
    no_bias: Tensor

    def __init__(self, site: Site) -> None:
        super().__init__()
        config = site.config
        self.groups, self.keep = config.n_group, config.topk_group
        self.k = config.num_experts_per_tok
        self.scoring = config.scoring_func
        self.renormalise = config.norm_topk_prob and self.k > 1
        # V2's official gate scales only the weights it does not renormalise; V3's scales both.
        self.scale = 1.0 if self.renormalise and config.model_type == "deepseek_v2" else config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.native = site.device.type == "cpu" and native.library() is not None
        self.register_buffer("no_bias", torch.empty(0, device="cpu"), persistent=False)

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """(weights float32 [N, K], ids int64 [N, K])."""
        gradients = torch.is_grad_enabled() and (x_ND.requires_grad or self.weight.requires_grad)
        if not self.native or gradients or x_ND.shape[0] > native.ROUTE_UP_TO:
            return self.plain(x_ND)
        weights_NK, ids_NK = torch.ops.dsv3rt.route(
            x_ND.float().contiguous(),
            self.weight.float().contiguous(),
            self.bias().float().contiguous(),
            self.groups,
            self.keep,
            self.best_of_group,
            self.k,
            self.scoring == "softmax",
            self.renormalise,
            self.scale,
        )
        return weights_NK, ids_NK

    def bias(self) -> Tensor:
        """Added to the scores when choosing: [E], or empty."""
        return self.no_bias

    def plain(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` in plain torch."""
        scores_NE = self.scores(x_ND)
        return self.weigh(scores_NE, scores_NE.topk(self.k, dim=-1).indices)

    def scores(self, x_ND: Tensor) -> Tensor:
        """float32 [N, E] affinities."""
        logits_NE = F.linear(x_ND.float(), self.weight.float())
        return logits_NE.sigmoid() if self.scoring == "sigmoid" else logits_NE.softmax(dim=-1)

    def weigh(self, scores_NE: Tensor, ids_NK: Tensor) -> tuple[Tensor, Tensor]:
        """Weights from the unbiased scores of the chosen."""
        weights_NK = scores_NE.gather(-1, ids_NK)
        if self.renormalise:
            weights_NK = weights_NK / (weights_NK.sum(dim=-1, keepdim=True) + 1e-20)
        return weights_NK * self.scale, ids_NK


class BiasTopK(_TopK):
    """V3: choose by score + correction bias, groups ranked by the sum of their two best; weigh by the score alone."""

    e_score_correction_bias: Tensor
    best_of_group = 2

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        # float32 always: biases near 7 collapse in bfloat16
        self.register_buffer("e_score_correction_bias", torch.zeros(site.config.n_routed_experts, dtype=torch.float32))

    def bias(self) -> Tensor:
        return self.e_score_correction_bias

    def plain(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        scores_NE = self.scores(x_ND)
        choice_NE = scores_NE + self.e_score_correction_bias
        if self.groups > 1:
            grouped_NGe = choice_NE.unflatten(-1, (self.groups, -1))
            best = grouped_NGe.topk(min(2, grouped_NGe.shape[-1]), dim=-1).values
            choice_NE = keep_best_groups(choice_NE, best.sum(dim=-1), self.keep)
        return self.weigh(scores_NE, choice_NE.topk(self.k, dim=-1).indices)


class SoftmaxTopK(_TopK):
    """V2-Lite's `greedy`: the K highest probabilities."""


class SoftmaxGroupTopK(_TopK):
    """V2's `group_limited_greedy`: groups ranked by their best expert."""

    best_of_group = 1

    def plain(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        scores_NE = self.scores(x_ND)
        best_NG = scores_NE.unflatten(-1, (self.groups, -1)).amax(dim=-1)
        choice_NE = keep_best_groups(scores_NE, best_NG, self.keep)
        return self.weigh(scores_NE, choice_NE.topk(self.k, dim=-1).indices)

"""A routing plugin for dsv3rt: chooses experts by noisy affinity, so that rarely used ones get their turn."""

import torch

from dsv3rt import hookimpl


class NoisyTopK(torch.nn.Module):
    """Top-k of sigmoid(affinity) x (1 + noise x a fixed, per-expert pattern)."""

    def __init__(self, site):
        super().__init__()
        self.k, self.scale = site.config.num_experts_per_tok, site.config.routed_scaling_factor
        self.weight = torch.nn.Parameter(torch.empty(site.config.n_routed_experts, site.config.hidden_size))
        pattern = torch.linspace(-1, 1, site.config.n_routed_experts, device="cpu")
        self.register_buffer("tilt", 1 + float(site.options.get("noise", 0.1)) * pattern, persistent=False)

    def forward(self, x_ND):
        scores_NE = torch.nn.functional.linear(x_ND.float(), self.weight.float()).sigmoid()
        ids_NK = (scores_NE * self.tilt).topk(self.k, dim=-1).indices
        weights_NK = scores_NE.gather(-1, ids_NK)
        return weights_NK / weights_NK.sum(-1, keepdim=True) * self.scale, ids_NK


@hookimpl
def register_routing(register):
    register("noisy_topk", NoisyTopK)

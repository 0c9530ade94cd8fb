"""The multi-token-prediction module while it learns (V3 report, section 2.2; one module, depth 1).

Legend: B sequences, T tokens, D hidden. The module at position t takes the main model's hidden state at t and the
embedding of token t+1, and is asked for token t+2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsv3rt.errors import ConfigError
from dsv3rt.interfaces import HeadSite
from dsv3rt.model.norm import RMSNorm


class _SharedHead(nn.Module):
    """Its own norm before the head it shares (`shared_head.norm` in the checkpoint)."""

    def __init__(self, hidden: int, eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(hidden, eps)


class PredictionModule(nn.Module):
    """`model.layers.{num_hidden_layers}` of the official checkpoint: one block beside the parameters below."""

    def __init__(self, site: HeadSite, layer: int) -> None:
        super().__init__()
        config = site.site.config
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.enorm, self.hnorm = RMSNorm(hidden, eps), RMSNorm(hidden, eps)
        self.eh_proj = site.site.quantization.linear(2 * hidden, hidden, prefix=f"model.layers.{layer}.eh_proj")
        self.shared_head = _SharedHead(hidden, eps)
        block = site.make_block(layer)
        # in a tuple, as its parts have their official names here
        self._block = (block,)
        self.input_layernorm, self.self_attn = block.input_layernorm, block.self_attn
        self.post_attention_layernorm, self.mlp = block.post_attention_layernorm, block.mlp

    def forward(self, hidden_BTD: Tensor, next_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        """From hidden states (after the final norm) and the embeddings of the next tokens to normed states for
        the head."""
        x_BTD = self.eh_proj(torch.cat([self.enorm(next_BTD), self.hnorm(hidden_BTD)], dim=-1))
        y_BTD: Tensor = self.shared_head.norm(self.block(x_BTD, positions_BT, None))
        return y_BTD

    @property
    def block(self) -> nn.Module:
        """The decoder block in it."""
        return self._block[0]


class TrainableHead(nn.ModuleDict):
    """Head slot `mtp_train`: children named by layer, so that their tensors have official names under
    "model.layers"."""

    max_drafts = 0

    def __init__(self, site: HeadSite) -> None:
        config = site.site.config
        if config.num_nextn_predict_layers != 1:
            raise ConfigError(
                f"training knows one prediction module, the config asks for {config.num_nextn_predict_layers}",
                fix="set num_nextn_predict_layers to 1",
            )
        layer = config.num_hidden_layers
        super().__init__({str(layer): PredictionModule(site, layer)})

    @property
    def module(self) -> PredictionModule:
        (only,) = self.values()
        assert isinstance(only, PredictionModule)
        return only

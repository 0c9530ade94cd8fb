"""Multi-token prediction (V3 report, section 2.2): modules behind the last layer, each drafting one token further.

Module d at row i (a position of the main model) takes what came before it there and the token at i+1+d, and predicts
the token at i+2+d:

    x = eh_proj(cat[enorm(embedding of token i+1+d), hnorm(h)])
    h' = shared_head.norm(block(x))
    logits = head(h')

where h is the main model's hidden state after its final norm or, from the second module on, the h' before.

Embedding and head are the main model's; copies in the checkpoint are not read. The order of the concatenation and the
normed hidden states are what transformers and the official serving code compute (the report writes them otherwise).

Legend: B sequences, T rows, D hidden, V vocabulary.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

from dsv3rt.errors import CheckpointError, UsageError
from dsv3rt.interfaces import Cache, Compile, HeadSite, Remembers
from dsv3rt.model.norm import RMSNorm
from dsv3rt_mtp.session import MOST_ROWS, MTPSession

DEFAULT_MAX_DRAFTS = 4
MOST_DRAFTS = MOST_ROWS - 1
"""So that a step's rows fit one graph, and products are bitwise independent of each other (see `Quantization`)."""


def make_module(site: HeadSite, layer: int) -> nn.Module:
    """A whole decoder block and the four parts an MTP module has beside it, under their official names."""
    config = site.site.config
    width, eps = config.hidden_size, config.rms_norm_eps
    module = site.make_block(layer)
    module.enorm = RMSNorm(width, eps)
    module.hnorm = RMSNorm(width, eps)
    module.eh_proj = site.site.quantization.linear(2 * width, width, prefix=f"model.layers.{layer}.eh_proj")
    module.shared_head = nn.Module()
    module.shared_head.norm = RMSNorm(width, eps)
    return module


class MTPHead(nn.Module):
    """All MTP modules of a checkpoint; the last one is applied again when more drafts than modules are wanted.

    Options: max_drafts, the most drafts a step proposes. Its children are named by official layer index.
    """

    def __init__(self, site: HeadSite) -> None:
        super().__init__()
        config = site.site.config
        if config.num_nextn_predict_layers == 0:
            raise CheckpointError("this checkpoint has no MTP modules", fix="draft with --head ngram, or not at all")
        self.max_drafts = _max_drafts(site, config.num_nextn_predict_layers)
        self.embed, self.lm_head, self.norm = site.embed, site.lm_head, site.norm
        self.vocab_size = config.vocab_size
        self.layers = range(config.num_hidden_layers, config.num_hidden_layers + config.num_nextn_predict_layers)
        for layer in self.layers:
            self.add_module(str(layer), make_module(site, layer))

    @property
    def depth(self) -> int:
        return len(self.layers)

    def module(self, depth: int) -> nn.Module:
        return self.get_submodule(str(self.layers[depth]))

    def check(self) -> None:
        """Refuse NaN and infinity, from which every draft would be nonsense. FP8 codes are the quantization's concern,
        and experts are many and seldom asked."""
        for layer in self.layers:
            module = self.get_submodule(str(layer))
            for name, tensor in chain(module.named_parameters(), module.named_buffers()):
                wide = tensor.is_floating_point() and tensor.itemsize > 1 and ".experts." not in name
                if wide and not bool(tensor.isfinite().all()):
                    raise CheckpointError(
                        f"model.layers.{layer}.{name} holds NaN or infinity", fix="download the checkpoint again"
                    )

    def advance(
        self, depth: int, ids_BT: Tensor, normed_BTD: Tensor, positions_BT: Tensor, cache: Cache | None
    ) -> Tensor:
        """Module `depth` over T rows at `positions_BT`: normed hidden states [B, T, D], for `logits` or the next.

        ids_BT: for row i the token at i+1+depth. normed_BTD: of the main model after its final norm (depth 0), or what
        this method returned for the module before. With `cache` None (training) the rows are the whole sequence.
        """
        return self._through(depth, self._join(depth, ids_BT, normed_BTD), positions_BT, cache)

    def advance_one(
        self, depth: int, ids_BT: Tensor, normed_BTD: Tensor, positions_BT: Tensor, wanted_1: Tensor, cache: Cache
    ) -> tuple[Tensor, Tensor]:
        """As `advance`, of row `wanted_1` (int64 [1]) only: (its normed hidden state [B, 1, D], its position [B, 1]).

        The other rows are but remembered, if the attention can do that: one layer deep, nobody else asks for them.
        """
        x_BTD, attention = self._join(depth, ids_BT, normed_BTD), self.module(depth).self_attn
        one_B1 = positions_BT.index_select(1, wanted_1)
        if not isinstance(attention, Remembers):
            return self._through(depth, x_BTD, positions_BT, cache).index_select(1, wanted_1), one_B1
        self._remember(depth, x_BTD, positions_BT, cache)
        return self._through(depth, x_BTD.index_select(1, wanted_1), one_B1, cache), one_B1

    def catch_up(self, depth: int, ids_BT: Tensor, normed_BTD: Tensor, positions_BT: Tensor, cache: Cache) -> None:
        """As `advance`, for the cache alone."""
        x_BTD = self._join(depth, ids_BT, normed_BTD)
        if isinstance(self.module(depth).self_attn, Remembers):
            self._remember(depth, x_BTD, positions_BT, cache)
        else:
            self._through(depth, x_BTD, positions_BT, cache)

    def _join(self, depth: int, ids_BT: Tensor, normed_BTD: Tensor) -> Tensor:
        part = self.module(depth)
        both = torch.cat([part.enorm(self.embed(ids_BT)), part.hnorm(normed_BTD)], dim=-1)  # type: ignore[operator]
        x_BTD: Tensor = part.eh_proj(both)  # type: ignore[operator]
        return x_BTD

    def _through(self, depth: int, x_BTD: Tensor, positions_BT: Tensor, cache: Cache | None) -> Tensor:
        part = self.module(depth)
        normed_BTD: Tensor = part.shared_head.norm(part(x_BTD, positions_BT, cache))  # type: ignore[operator, union-attr]
        return normed_BTD

    def _remember(self, depth: int, x_BTD: Tensor, positions_BT: Tensor, cache: Cache) -> None:
        part = self.module(depth)
        part.self_attn.remember(part.input_layernorm(x_BTD), positions_BT, cache)  # type: ignore[operator, union-attr]

    def logits(self, normed_BTD: Tensor) -> Tensor:
        """float32 [B, T, V]."""
        logits_BTV: Tensor = self.lm_head(normed_BTD)
        return logits_BTV.float()

    def make_caches(self, capacity: int, device: torch.device, batch: int = 1) -> list[Cache]:
        """One cache a module. Drafts reach past the newest token, so there is room for them beyond `capacity`."""
        room = capacity + self.max_drafts + self.depth
        blocks = [self.module(depth) for depth in range(self.depth)]
        return [block.self_attn.make_cache(batch, room, device) for block in blocks]  # type: ignore[operator, union-attr]

    @property
    def cache_bytes_per_token(self) -> int:
        return sum(int(self.module(d).self_attn.cache_bytes_per_token) for d in range(self.depth))  # type: ignore[union-attr, arg-type, misc]

    def start(self, capacity: int, device: torch.device, compile: Compile) -> MTPSession:
        return MTPSession(self, capacity, device, compile)


def _max_drafts(site: HeadSite, depth: int) -> int:
    text = site.site.options.get("max_drafts", str(max(DEFAULT_MAX_DRAFTS, depth)))
    if not text.isdigit() or not 1 <= int(text) <= MOST_DRAFTS:
        raise UsageError(f"--head mtp:max_drafts={text} is out of range", fix=f"give a number from 1 to {MOST_DRAFTS}")
    return int(text)

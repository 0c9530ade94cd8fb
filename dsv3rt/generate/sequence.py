"""A conversation's tokens and caches.

Legend: S cache capacity.
"""

from __future__ import annotations

from collections.abc import Sequence as TokenSequence

import torch

from dsv3rt.compile.engine import Engine
from dsv3rt.errors import ContextError
from dsv3rt.interfaces import Cache

PREFILL_CHUNK = 512
SMALLEST_WINDOW = 256


class Sequence:
    """Token ids so far; the first `computed` of them have their latents in the caches."""

    def __init__(self, engine: Engine, capacity: int, device: torch.device) -> None:
        self.engine = engine
        self.capacity = capacity
        self.device = device
        self.token_ids: list[int] = []
        self.computed = 0
        self.caches = engine.decoder.make_caches(capacity, device)
        layers = engine.decoder.model.layers
        self._reads_only_used = all(getattr(block.self_attn, "reads_only_used", False) for block in layers)

    def window(self, used: int) -> list[Cache]:
        """The caches, cut to a power of two that holds `used` tokens (not when attention reads only what is used)."""
        if self._reads_only_used:
            return self.caches
        size = min(self.capacity, max(SMALLEST_WINDOW, 1 << (used - 1).bit_length()))
        return [tuple(part[:, :size] for part in cache) for cache in self.caches]

    def rewind(self, length: int) -> None:
        """Forget everything from token `length` on."""
        del self.token_ids[length:]
        self.computed = min(self.computed, length)

    def reuse(self, token_ids: TokenSequence[int]) -> int:
        """Keep the longest common prefix with `token_ids`, drop the rest; returns how many tokens are computed."""
        common = 0
        for mine, theirs in zip(self.token_ids, token_ids, strict=False):
            if mine != theirs:
                break
            common += 1
        # the last token is always run again: its logits are wanted
        self.rewind(min(common, len(token_ids) - 1))
        return self.computed

    def extend(self, token_ids: TokenSequence[int], last: int | None = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Append tokens and run them in chunks: (logits [L, V] of the `last` ones, hidden [T, D] of all new ones)."""
        start, new = self.computed, [*self.token_ids[self.computed :], *token_ids]
        if start + len(new) > self.capacity:
            raise ContextError(
                f"{start + len(new)} tokens do not fit the context of {self.capacity}",
                fix="shorten the prompt or raise -c/--ctx-size",
            )
        self.token_ids.extend(token_ids)
        logits, hidden = [], []
        for at in range(0, len(new), PREFILL_CHUNK):
            chunk = new[at : at + PREFILL_CHUNK]
            ids = torch.tensor([chunk], device=self.device)
            positions = torch.arange(start + at, start + at + len(chunk), device=self.device)[None]
            wanted = None if last is None else max(0, min(len(chunk), last - (len(new) - at - len(chunk))))
            out = self.engine.step(ids, positions, self.window(start + at + len(chunk)), wanted)
            logits.append(out[0][0])
            hidden.append(out[1][0])
            self.computed = start + at + len(chunk)
        return torch.cat(logits), torch.cat(hidden)

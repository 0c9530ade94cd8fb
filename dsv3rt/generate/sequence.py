"""A conversation's tokens and caches.

Legend: S cache capacity.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from collections.abc import Sequence as TokenSequence
from typing import Any, TypeVar

import torch

from dsv3rt.compile.engine import Engine
from dsv3rt.errors import ContextError
from dsv3rt.interfaces import Cache
from dsv3rt.model.cache import reads_only_used, window
from dsv3rt.model.ids import ints

PREFILL_CHUNK = 512
T = TypeVar("T")
Reading = Generator[list[Any], None, T]
"""A prompt being read: stops after each chunk with an empty list, no token being settled yet."""


class Sequence:
    """Token ids so far; the first `computed` of them have their latents in the caches."""

    def __init__(self, engine: Engine, capacity: int, device: torch.device) -> None:
        self.engine = engine
        self.capacity = capacity
        self.device = device
        self.token_ids: list[int] = []
        self.computed = 0
        self.caches = engine.decoder.make_caches(capacity, device)
        self._whole = reads_only_used(list(engine.decoder.model.layers))
        self._positions_1S = torch.arange(capacity, device=device)[None]

    def window(self, used: int) -> list[Cache]:
        """The caches, cut to a power of two that holds `used` tokens (not when attention reads only what is used)."""
        return self.caches if self._whole else window(self.caches, used)

    def rewind(self, length: int) -> None:
        """Forget everything from token `length` on."""
        del self.token_ids[length:]
        self.computed = min(self.computed, length)

    def shared(self, token_ids: TokenSequence[int]) -> int:
        """How many tokens `token_ids` begins with as this conversation does."""
        pairs = enumerate(zip(self.token_ids, token_ids, strict=False))
        return next((i for i, (mine, theirs) in pairs if mine != theirs), min(len(self.token_ids), len(token_ids)))

    def reuse(self, token_ids: TokenSequence[int], lookback: int = 0) -> int:
        """Keep the longest common prefix with `token_ids`, less `lookback` tokens, and drop the rest.

        Returns how many tokens are computed already.
        """
        common = self.shared(token_ids)
        # the last token is always run again: its logits are wanted
        self.rewind(max(0, min(common, len(token_ids) - 1) - lookback))
        return self.computed

    def extend(self, token_ids: TokenSequence[int], last: int | None = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """As `reading`, at one go."""
        if self.computed == len(self.token_ids) and len(token_ids) <= PREFILL_CHUNK:  # a decode step
            self._append(token_ids, len(token_ids))
            return self._run(token_ids, last)
        return outcome(self.reading(token_ids, last))

    def reading(
        self,
        token_ids: TokenSequence[int],
        last: int | None = 1,
        seen: Callable[[int, torch.Tensor], None] | None = None,
    ) -> Reading[tuple[torch.Tensor, torch.Tensor]]:
        """Append tokens and run them in chunks: (logits [L, V] of the `last` ones, hidden [T, D] of the last chunk).

        `seen(position, hidden [.., D])` is called after each chunk. Given up halfway, what has been run stays.
        """
        start, new = self.computed, [*self.token_ids[self.computed :], *token_ids]
        self._append(token_ids, len(new))
        logits: list[torch.Tensor] = []
        for at in range(0, len(new), PREFILL_CHUNK):
            chunk = new[at : at + PREFILL_CHUNK]
            wanted = None if last is None else max(0, min(len(chunk), last - (len(new) - at - len(chunk))))
            logits_LV, hidden_TD = self._run(chunk, wanted)
            logits.append(logits_LV)
            if seen is not None:
                seen(start + at, hidden_TD)
            yield []
        return logits[0] if len(logits) == 1 else torch.cat(logits), hidden_TD

    def _append(self, token_ids: TokenSequence[int], to_run: int) -> None:
        """Take up tokens, which makes `to_run` that are not computed."""
        if self.computed + to_run > self.capacity:
            raise ContextError(
                f"{self.computed + to_run} tokens do not fit the context of {self.capacity}",
                fix="shorten the prompt or raise -c/--ctx-size",
            )
        self.token_ids.extend(token_ids)

    def _run(self, chunk: TokenSequence[int], last: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The next tokens through the decoder: (logits [L, V] of the `last` ones, None for all; hidden [T, D])."""
        start, end = self.computed, self.computed + len(chunk)
        ids_1T = ints(chunk, self.device)[None]
        logits_1LV, hidden_1TD = self.engine.step(ids_1T, self._positions_1S[:, start:end], self.window(end), last)
        self.computed = end
        return logits_1LV[0], hidden_1TD[0]


def outcome(reading: Reading[T]) -> T:
    """What a reading comes to, without a pause."""
    while True:
        try:
            next(reading)
        except StopIteration as done:
            result: T = done.value
            return result

"""A model whose next token depends on the last one alone, and heads for it: thousands of steps in a second.

Legend: B sequences, T new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dsv3rt.generate.sequence import Sequence as TokenSequence
from dsv3rt.generate.speculation import Speculator
from dsv3rt.interfaces import DraftRule, Drafts


class MarkovEngine:
    """Stands in for the engine. Its one cache remembers which token was run at each position."""

    def __init__(self, vocab: int, seed: int = 0, spread: float = 2.0) -> None:
        self.table_VV = spread * torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(seed))
        self.decoder = SimpleNamespace(model=SimpleNamespace(layers=[]), make_caches=self.make_caches)
        self.tokens_run = 0

    def make_caches(self, capacity: int, device: torch.device) -> list[tuple[Tensor, ...]]:
        return [(torch.full((1, capacity), -1),)]

    def graph(self, module: Any) -> Callable[..., Any]:
        return module  # type: ignore[no-any-return]

    def step(self, ids_BT: Tensor, positions_BT: Tensor, caches: Any, last: int | None) -> tuple[Tensor, Tensor]:
        caches[0][0][0, positions_BT[0]] = ids_BT[0]
        self.tokens_run += ids_BT.shape[1]
        # the hidden state of a row is the position it is for, so that heads can check what they are shown
        hidden_BTD = positions_BT[..., None].float()
        wanted = ids_BT if last is None else ids_BT[:, ids_BT.shape[1] - last :]
        return self.table_VV[wanted], hidden_BTD


class MarkovHead:
    """Drafts from `table_VV` of its own: certain drafts, or drawn ones with their distribution.

    `flaws` makes it propose, every so often, fewer drafts than asked for.
    """

    def __init__(self, table_VV: Tensor, max_drafts: int = 4, *, certain: bool = False, flaws: bool = False) -> None:
        self.table_VV, self.max_drafts, self.certain, self.flaws = table_VV, max_drafts, certain, flaws

    def start(self, capacity: int, device: torch.device, compile: Any) -> MarkovSession:
        return MarkovSession(self)


class MarkovSession:
    lookback = 1

    def __init__(self, head: MarkovHead) -> None:
        self.head = head
        self.ids: list[int] = []
        self.asked = 0

    @property
    def observed(self) -> int:
        return len(self.ids)

    def observe(self, token_ids: Sequence[int], hidden_TD: Tensor, position: int) -> None:
        assert position <= len(self.ids), "rows were left out"
        assert len(hidden_TD) >= len(token_ids) > 0
        assert hidden_TD[: len(token_ids), 0].tolist() == list(range(position, position + len(token_ids)))
        del self.ids[position:]
        self.ids.extend(token_ids)

    def draft(self, count: int, rule: DraftRule) -> Drafts:
        self.asked += 1
        if self.head.flaws and self.asked % 3 == 0:
            count = self.asked % (count + 1)
        token, tokens, probs = self.ids[-1], [], []
        for _ in range(count):
            logits_V = self.head.table_VV[token]
            if self.head.certain or rule.temperature == 0:
                token = int(logits_V.argmax())
            else:
                probs.append(torch.softmax(logits_V / rule.temperature, dim=-1))
                token = min(int((probs[-1].cumsum(0) <= float(rule.uniforms(1))).sum()), len(logits_V) - 1)
            tokens.append(token)
        if not probs:
            return Drafts(tokens)
        return Drafts(tokens, (torch.arange(len(self.head.table_VV)).expand(len(probs), -1), torch.stack(probs)))


def speculator(engine: MarkovEngine, head: MarkovHead, capacity: int = 4096) -> Speculator:
    return Speculator(head, TokenSequence(engine, capacity, torch.device("cpu")))  # type: ignore[arg-type]

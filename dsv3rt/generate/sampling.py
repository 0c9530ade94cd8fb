"""From logits to a token, and to the exact distribution that token was drawn from.

The order is that of the field's reference (transformers' logits processors): repetition penalty, temperature, top-k,
top-p, min-p. Speculative decoding needs the distribution itself (arXiv 2211.17192), so it is computed once, drawn from
and handed out.

Shape legend: V vocabulary, K candidates that survive the filters.
"""

from __future__ import annotations

import math
import secrets
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from dsv3rt.errors import UsageError, UserError
from dsv3rt.generate.likeliest import likeliest
from dsv3rt.model.ids import ints

_FIRST_NUCLEUS = 1024
"""How many of the likeliest tokens are looked at first when top-p alone cuts a whole vocabulary."""
_BISECTIONS = 24
"""Halvings of the range of probabilities: what is left of it holds few tokens, however flat the distribution."""


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. The defaults are what DeepSeek recommends where a checkpoint says nothing."""

    temperature: float = 0.6
    """0 means greedy."""
    top_k: int = 0
    """0 means all."""
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    """None: a fresh seed each time; `Sampler.seed` says which."""

    def __post_init__(self) -> None:
        _require("temperature", self.temperature, 0 <= self.temperature <= 100, "between 0 (greedy) and 100")
        _require("top_k", self.top_k, isinstance(self.top_k, int) and self.top_k >= 0, "a whole number, 0 for all")
        _require("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, at most 1")
        _require("min_p", self.min_p, 0 <= self.min_p <= 1, "between 0 and 1")
        _require("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty <= 100, "above 0")
        if self.seed is not None:
            _require("seed", self.seed, 0 <= self.seed < 2**63, "between 0 and 2^63 - 1")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or self.top_k == 1

    @classmethod
    def from_generation_config(cls, raw: Mapping[str, Any]) -> SamplingParams:
        """What `generation_config.json` recommends. A key it lacks is neutral; if it has none, our defaults hold."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        given = {name: raw[name] for name in names if raw.get(name) is not None}
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise UsageError(f"generation_config.json: {name} = {value!r} is not a number", fix="correct the file")
        if raw.get("do_sample") is False:
            given["temperature"] = 0.0
        if isinstance(given.get("top_k"), float):
            given["top_k"] = int(given["top_k"])
        neutral = {"temperature": 1.0, "top_p": 1.0} if given else {}
        return cls(**{**neutral, **given})

    def override(self, **given: Any) -> SamplingParams:
        """The same with every value in `given` that is not None."""
        known = {field.name for field in fields(self)}
        unknown = sorted(set(given) - known)
        if unknown:
            raise UsageError(f"unknown sampling option {unknown[0]!r}", fix=f"known: {', '.join(sorted(known))}")
        return replace(self, **{name: value for name, value in given.items() if value is not None})


def _require(name: str, value: Any, holds: bool, rule: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        holds = False
    if not holds:
        raise UsageError(f"{name} = {value!r} is out of range", fix=f"it must be {rule}")


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural-log probabilities under the model's own distribution: no temperature, no filters."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens, best first."""


def token_logprobs(logits_V: Tensor, token_id: int, count: int) -> TokenLogprobs:
    """The log-probability of `token_id` and of the `count` likeliest tokens."""
    logits_V = logits_V.float()
    norm = torch.logsumexp(logits_V, dim=-1)
    best = torch.topk(logits_V, min(count, logits_V.numel()))
    top = zip(best.indices.tolist(), (best.values - norm).tolist(), strict=True)
    return TokenLogprobs(token_id, float(logits_V[token_id] - norm), tuple(top))


class Sampler:
    """Chooses tokens for one answer. The same seed and logits give the same tokens, on any device."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self.seed = secrets.randbits(62) if params.seed is None else params.seed
        self._generator = torch.Generator().manual_seed(self.seed)

    def sample(self, logits_V: Tensor, history: Sequence[int] = ()) -> tuple[int, Tensor | None]:
        """One token and the distribution [V] it was drawn from (None when greedy: a point mass).

        `history` is every token so far, the prompt included; only the repetition penalty reads it.
        """
        if self.params.greedy:
            return self.greedy(logits_V, history), None
        probs_V = self.probabilities(logits_V, history)
        return self.draw(probs_V), probs_V

    def greedy(self, logits_V: Tensor, history: Sequence[int] = ()) -> int:
        """The likeliest token; of equals, the one with the lowest id."""
        scores_V = self._penalised(logits_V, history)
        token = int(scores_V.argmax())
        _refuse_nan(scores_V[token])
        return token

    def next_token(self, logits_V: Tensor, history: Sequence[int] = ()) -> int:
        """As `sample`, for who needs no distribution: touches only the candidates."""
        if self.params.greedy:
            return self.greedy(logits_V, history)
        scores_V = self._penalised(logits_V, history)
        if (few := self._likeliest(scores_V)) is not None:
            ids, weights = few
            return ids[self._draw_of_few(weights)]
        ids_K, probs_K = self._candidates(scores_V)
        choice = self.draw(probs_K)
        return choice if ids_K is None else int(ids_K[choice])

    def probabilities(self, logits_V: Tensor, history: Sequence[int] = ()) -> Tensor:
        """float32 [V], summing to 1: exactly what `sample` draws from (greedy: a point mass)."""
        if self.params.greedy:
            probs_V = torch.zeros_like(logits_V, dtype=torch.float32)
            probs_V[self.greedy(logits_V, history)] = 1.0
            return probs_V
        scores_V = self._penalised(logits_V, history)
        if (few := self._likeliest(scores_V)) is not None:
            ids_K = ints(few[0], scores_V.device)
            weights_K = torch.tensor(few[1], dtype=torch.float64, device=scores_V.device)
            probs_K = (weights_K / weights_K.sum()).float()
        elif (found := self._candidates(scores_V))[0] is None:
            return found[1]
        else:
            ids_K, probs_K = found[0], found[1]
        return torch.zeros_like(logits_V, dtype=torch.float32).scatter_(0, ids_K, probs_K)

    def draw(self, weights: Tensor) -> int:
        """An index with probability weights / sum(weights); `weights` float32, not negative, not all zero."""
        cumulated = weights.double().cumsum(0)
        # The draw is made on the CPU and in float64 so that a seed means the same text on every device.
        point = torch.rand((), generator=self._generator, dtype=torch.float64).to(cumulated.device) * cumulated[-1]
        index = int(torch.searchsorted(cumulated, point, right=True))
        # Rounding may put the point on the total itself, past the last index that has any weight.
        return index if index < weights.numel() else int(weights.nonzero()[-1])

    def _draw_of_few(self, weights: Sequence[float]) -> int:
        """As `draw`, from numbers."""
        sums = list(accumulate(weights))
        point = float(torch.rand((), generator=self._generator, dtype=torch.float64)) * sums[-1]
        index = bisect_right(sums, point)
        return index if index < len(sums) else max(slot for slot, weight in enumerate(weights) if weight > 0)

    def uniforms(self, count: int) -> Tensor:
        """Numbers in [0, 1), float64 [count] on the CPU, from this answer's generator."""
        return torch.rand(count, generator=self._generator, dtype=torch.float64)

    def _likeliest(self, scores_V: Tensor) -> tuple[list[int], list[float]] | None:
        params = self.params
        return likeliest(scores_V, params.temperature, params.top_k, params.top_p, params.min_p)

    def _candidates(self, scores: Tensor) -> tuple[Tensor | None, Tensor]:
        """(ids [K], probs [K]) of the tokens that survive, ascending ids; ids None means every token, K = V."""
        params = self.params
        # Subtracting the maximum first keeps a tiny temperature from overflowing; softmax is blind to the shift.
        top = scores.max()
        _refuse_nan(top)
        scores = (scores - top) / params.temperature
        ids: Tensor | None = None
        if 0 < params.top_k < scores.numel():
            threshold = torch.topk(scores, params.top_k, sorted=False).values.min()
            ids = (scores >= threshold).nonzero()[:, 0]  # ties with the k-th stay, as in the reference
            scores = scores[ids]
        probs = torch.softmax(scores, dim=-1)
        if params.top_p < 1:
            kept = _nucleus(probs, params.top_p)
            ids = kept if ids is None else ids[kept]
            probs = torch.softmax(scores[kept], dim=-1)
        if params.min_p > 0:
            kept = (probs >= params.min_p * probs.max()).nonzero()[:, 0]
            ids = kept if ids is None else ids[kept]
            probs = probs[kept] / probs[kept].sum()
        return ids, probs

    def _penalised(self, logits_V: Tensor, history: Sequence[int]) -> Tensor:
        """float32 logits with the repetition penalty (CTRL, arXiv 1909.05858): towards minus infinity if above 1."""
        scores_V = logits_V.float()
        penalty = self.params.repetition_penalty
        if penalty == 1 or len(history) == 0:
            return scores_V
        seen = ints(sorted(set(history)), scores_V.device)
        old = scores_V[seen]
        return scores_V.index_copy(0, seen, torch.where(old < 0, old * penalty, old / penalty))


def _nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Ascending indices of the smallest set of likeliest tokens whose mass reaches `top_p`; at least one.

    Sorting a vocabulary of 160K costs more than everything else here. So the likeliest few are tried first; if they do
    not suffice, bisection finds the probability at which the mass is reached, and only what lies next to it is sorted.
    """
    best, ids = torch.topk(probs, min(_FIRST_NUCLEUS, probs.numel()))
    if best.numel() == probs.numel() or float(best.sum(dtype=torch.float64)) >= top_p:
        return ids[_before(best, 0.0, top_p)].sort().values
    low, high = 0.0, float(best[0])  # what is above `low` has a mass that reaches top_p, what is above `high` has not
    surely = 0.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        mass = float(torch.threshold(probs, middle, 0.0).sum(dtype=torch.float64))
        if mass < top_p:
            high, surely = middle, mass
        else:
            low = middle
    border = ((probs > low) & (probs <= high)).nonzero()[:, 0]
    ordered = torch.sort(probs[border], descending=True, stable=True)
    kept = border[ordered.indices[_before(ordered.values, surely, top_p)]]
    inside = probs > high
    inside[kept] = True
    return inside.nonzero()[:, 0]


def _before(descending: Tensor, mass: float, top_p: float) -> Tensor:
    """Mask of those whose predecessors, `mass` included, do not yet reach `top_p`; the very first always belongs."""
    before = descending.double().cumsum(0) - descending.double() + mass
    inside = before < top_p
    if mass == 0:
        inside[:1] = True
    return inside


def _refuse_nan(score: Tensor) -> None:
    if not math.isfinite(float(score)):
        raise UserError(
            "the model's output is not a number, so no token can be chosen",
            fix="weights damaged, or a dtype too narrow for them: try --dtype float32",
        )

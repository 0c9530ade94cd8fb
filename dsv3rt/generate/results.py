"""What generation gives back."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from dsv3rt.generate.sampling import TokenLogprobs

FinishReason = Literal["stop", "length", "interrupted"]


@dataclass(frozen=True)
class Chunk:
    """A piece of the answer as it comes. Empty ones say that another part of a long prompt has been read."""

    text: str
    """Whole characters, nothing of a stop string."""
    token_ids: tuple[int, ...]
    reasoning: str = ""
    """What the model thought aloud, when the chat format has reasoning tags."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each of `token_ids`, when they were asked for."""


@dataclass(frozen=True)
class Timings:
    """Seconds and tokens per second; load and compile never mixed into the speeds."""

    load_s: float
    compile_s: float
    ttft_s: float
    prompt_tokens: int
    """Tokens of the prompt that had to be computed (the rest were in the cache)."""
    prompt_tps: float
    gen_tokens: int
    gen_tps: float
    peak_rss_bytes: int


@dataclass
class Speculation:
    """How drafting went."""

    drafted: int = 0
    accepted: int = 0
    per_position: list[float] = field(default_factory=list)
    """Acceptance rate of the first draft of a step, the second, and so on."""
    speedup: float | None = None
    """Measured tokens/s over the estimate without drafting."""

    @property
    def acceptance(self) -> float:
        return self.accepted / self.drafted if self.drafted else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "acceptance": self.acceptance}


@dataclass(frozen=True)
class Generation:
    """One finished answer."""

    text: str
    token_ids: list[int]
    prompt_token_ids: list[int]
    finish_reason: FinishReason
    timings: Timings
    speculation: Speculation
    plan: Mapping[str, Any]
    reasoning: str = ""
    logprobs: list[TokenLogprobs] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The contract of `dsv3rt generate --json`."""
        logprobs = None
        if self.logprobs is not None:
            logprobs = [
                {
                    "token_id": entry.token_id,
                    "logprob": entry.logprob,
                    "top": [{"token_id": token, "logprob": value} for token, value in entry.top],
                }
                for entry in self.logprobs
            ]
        return {
            "text": self.text,
            "reasoning": self.reasoning,
            "token_ids": self.token_ids,
            "prompt_token_ids": self.prompt_token_ids,
            "finish_reason": self.finish_reason,
            "logprobs": logprobs,
            "timings": asdict(self.timings),
            "speculation": self.speculation.as_dict(),
            "plan": dict(self.plan),
        }


def peak_rss_bytes() -> int:
    """Most memory this process has held resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

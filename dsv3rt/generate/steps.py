"""The decode loop: one step after another, each settling one token or more.

Legend: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from dsv3rt.generate.sampling import Sampler
from dsv3rt.generate.sequence import Sequence


@dataclass(frozen=True)
class Settled:
    """A token that stays, and the logits [V] it was chosen from."""

    token_id: int
    logits_V: Tensor


def plain_steps(sequence: Sequence, logits_V: Tensor, sampler: Sampler) -> Iterator[list[Settled]]:
    """One token a step, for ever: the consumer stops asking. `logits_V` follow the last token of `sequence`."""
    while True:
        token = sampler.next_token(logits_V, sequence.token_ids)
        yield [Settled(token, logits_V)]
        logits, _ = sequence.extend([token])
        logits_V = logits[-1]

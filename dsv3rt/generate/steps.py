"""The decode loop: one step after another, each settling one token or more.

Legend: T rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from dsv3rt.generate.sampling import Sampler
from dsv3rt.generate.sequence import Sequence


class Settled(NamedTuple):
    """A token that stays, and where the logits are that it was chosen from."""

    token_id: int
    logits_TV: Tensor
    row: int

    @property
    def logits(self) -> Tensor:
        """[V]."""
        return self.logits_TV[self.row]


def plain_steps(sequence: Sequence, logits_V: Tensor, sampler: Sampler) -> Iterator[list[Settled]]:
    """One token a step, for ever: the consumer stops asking. `logits_V` follow the last token of `sequence`."""
    logits_TV = logits_V[None]
    while True:
        token = sampler.next_token(logits_TV[-1], sequence.token_ids)
        yield [Settled(token, logits_TV, -1)]
        logits_TV, _ = sequence.extend([token])

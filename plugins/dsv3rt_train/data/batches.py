"""Which documents make up which step: documents of similar length share a micro-batch, so little is padding.

No document sees another. Everything follows from the seed and the step number, which is what makes resuming exact.

Legend: B documents, T tokens (the longest, rounded up), pads at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsv3rt_train.data.documents import Corpus

_ROUND = 16
_WINDOW = 4096


@dataclass(frozen=True)
class MicroBatch:
    """B documents padded to T."""

    ids_BT: Tensor
    """int64."""
    learn_BT: Tensor
    """bool: whether this token is to be predicted."""
    real_BT: Tensor
    """bool: not padding."""

    def to(self, device: torch.device) -> MicroBatch:
        return MicroBatch(self.ids_BT.to(device), self.learn_BT.to(device), self.real_BT.to(device))


class Batches:
    """The steps of one training run over a corpus, in an order fixed by `seed`, epoch after epoch."""

    def __init__(self, corpus: Corpus, *, tokens: int, micro_batches: int, seed: int, pad_id: int) -> None:
        """`tokens` padded tokens a micro-batch (about), `micro_batches` of them a step."""
        self.corpus, self.tokens, self.micro_batches = corpus, tokens, micro_batches
        self.seed, self.pad_id = seed, pad_id
        self._epoch, self._groups = -1, [np.empty(0, np.int64)]
        self._enter(0)
        self.per_epoch = max(1, len(self._groups) // micro_batches)

    def _enter(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.corpus))
        lengths = -(-self.corpus.lengths // _ROUND) * _ROUND
        groups: list[NDArray[np.int64]] = []
        for start in range(0, len(order), _WINDOW):
            window = order[start : start + _WINDOW]
            window = window[np.argsort(lengths[window], kind="stable")[::-1]]
            first = 0
            while first < len(window):
                count = max(1, self.tokens // int(lengths[window[first]]))
                groups.append(window[first : first + count])
                first += count
        # groups of one window stay near each other only by chance
        self._groups = [groups[i] for i in rng.permutation(len(groups))]
        self._epoch = epoch

    def step(self, number: int) -> list[MicroBatch]:
        """The micro-batches of step `number` (from 0). Epochs differ in nothing but their shuffling."""
        self._enter(number // self.per_epoch)
        first = number % self.per_epoch * self.micro_batches
        return [self.collate(group) for group in self._groups[first : first + self.micro_batches]]

    def collate(self, documents: NDArray[np.int64]) -> MicroBatch:
        """The documents, padded."""
        corpus = self.corpus
        length = -(-int(corpus.lengths[documents].max()) // _ROUND) * _ROUND
        ids = np.full((len(documents), length), self.pad_id, np.int64)
        learn = np.zeros((len(documents), length), np.bool_)
        real = np.zeros((len(documents), length), np.bool_)
        for row, document in enumerate(documents):
            start, stop = int(corpus.offsets[document]), int(corpus.offsets[document + 1])
            ids[row, : stop - start] = corpus.ids[start:stop]
            learn[row, : stop - start] = corpus.learn[start:stop]
            real[row, : stop - start] = True
        return MicroBatch(torch.from_numpy(ids), torch.from_numpy(learn), torch.from_numpy(real))

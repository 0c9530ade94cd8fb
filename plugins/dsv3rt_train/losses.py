"""The training objective: next token, and the token after next through the prediction module (V3 report, equations
24-25).

Legend: B documents, T tokens, D hidden, V vocabulary, M positions whose successor is to be learnt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dsv3rt_train.balance import LoadObserver
from dsv3rt_train.data.batches import MicroBatch
from dsv3rt_train.model.build import TrainableModel


@dataclass(frozen=True)
class Losses:
    """Sums over the learnt positions of one micro-batch, not means: the step divides by its own total."""

    next_sum: Tensor
    next_count: int
    mtp_sum: Tensor | None
    mtp_count: int
    mtp_agrees: int
    """Positions where the module's first choice for t+2 is what the main model itself prefers there."""
    mtp_compared: int


def _cross_entropy(model: TrainableModel, normed_MD: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
    logits_MV = model.decoder.lm_head(normed_MD).float()
    return F.cross_entropy(logits_MV, targets_M, reduction="sum"), logits_MV.detach().argmax(-1)


def compute(
    model: TrainableModel, batch: MicroBatch, observer: LoadObserver | None, *, mtp_share: float = 1.0
) -> Losses:
    """Forward pass of one micro-batch; `mtp_share` of its documents train the prediction module (0: none)."""
    ids_BT, learn_BT = batch.ids_BT, batch.learn_BT
    positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
    if observer is not None:
        observer.real_N = batch.real_BT.reshape(-1)
    hidden_BTD = model.decoder.hidden(ids_BT, positions_BT)
    asked_BT = F.pad(learn_BT[:, 1:], (0, 1))
    normed_BTD = model.decoder.model.norm(hidden_BTD)
    next_sum, best_M = _cross_entropy(model, normed_BTD[asked_BT], ids_BT[:, 1:][learn_BT[:, 1:]])
    count = int(asked_BT.sum())
    rows = min(ids_BT.shape[0], round(ids_BT.shape[0] * mtp_share + 0.499)) if model.prediction is not None else 0
    if not rows or model.prediction is None:
        return Losses(next_sum, count, None, 0, 0, 0)

    # position t: hidden state at t (after the final norm, as drafting will pass it), token t+1, target t+2
    if observer is not None:
        observer.real_N = batch.real_BT[:rows, 1:].reshape(-1)
    next_BTD = model.decoder.model.embed_tokens(ids_BT[:rows, 1:].contiguous())
    predicted_BTD = model.prediction(normed_BTD[:rows, :-1].contiguous(), next_BTD, positions_BT[:rows, :-1])
    asked2_BT = F.pad(learn_BT[:rows, 2:], (0, 1))
    mtp_sum, drafted_M = _cross_entropy(model, predicted_BTD[asked2_BT], ids_BT[:rows, 2:][learn_BT[:rows, 2:]])
    preferred_BT = torch.full_like(ids_BT, -1)
    preferred_BT[asked_BT] = best_M
    wanted_M = preferred_BT[:rows, 1:][asked2_BT]
    known_M = wanted_M >= 0
    agrees = int(((wanted_M == drafted_M) & known_M).sum())
    return Losses(next_sum, count, mtp_sum, int(asked2_BT.sum()), agrees, int(known_M.sum()))

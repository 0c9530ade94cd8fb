"""The training objectives: next token, and the token after next through the prediction module (V3 report, equations
24-25); or the module alone, towards what the frozen main model says itself.

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
        observer.real_BT = batch.real_BT
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
        observer.real_BT = batch.real_BT[:rows, 1:].contiguous()
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


@dataclass(frozen=True)
class DraftLosses:
    """Sums over the positions whose token is the model's to say, by application of the module."""

    total: Tensor
    agrees: list[int]
    """Where the module's first choice is the main model's."""
    compared: list[int]


def compute_drafts(
    model: TrainableModel, batch: MicroBatch, observer: LoadObserver | None, *, applications: int
) -> DraftLosses:
    """The module applied again and again as drafting does, each time against the main model's whole distribution.

    Application d at position t takes what the one before gave there (the first: the main model's hidden state), token
    t+1+d, and is asked for what the main model says after it. One difference to drafting remains: later applications
    attend to rows of their own, where drafting keeps the first one's rows in its cache.
    """
    module = model.prediction
    assert module is not None
    ids_BT, learn_BT = batch.ids_BT, batch.learn_BT
    positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
    if observer is not None:
        observer.real_BT = batch.real_BT
    asked_BT = F.pad(learn_BT[:, 1:], (0, 1))
    row_BT = torch.full_like(ids_BT, -1)
    row_BT[asked_BT] = torch.arange(int(asked_BT.sum()), device=ids_BT.device)
    with torch.no_grad():
        h_BTD = model.decoder.model.norm(model.decoder.hidden(ids_BT, positions_BT))
        wanted_MV = model.decoder.lm_head(h_BTD[asked_BT]).float().log_softmax(-1)
    total, agrees, compared = h_BTD.new_zeros(()), [], []
    for d in range(applications):
        end = ids_BT.shape[1] - 1 - d
        if observer is not None:
            observer.real_BT = batch.real_BT[:, 1 + d :].contiguous()
        next_BTD = model.decoder.model.embed_tokens(ids_BT[:, 1 + d :].contiguous())
        h_BTD = module(h_BTD[:, :end].contiguous(), next_BTD, positions_BT[:, d : d + end])
        place_BT = row_BT[:, 1 + d :]
        scores_MV = model.decoder.lm_head(h_BTD[place_BT >= 0]).float().log_softmax(-1)
        target_MV = wanted_MV[place_BT[place_BT >= 0]]
        total = total - (target_MV.exp() * scores_MV).sum()
        agrees.append(int((target_MV.argmax(-1) == scores_MV.argmax(-1)).sum()))
        compared.append(len(target_MV))
    return DraftLosses(total, agrees, compared)

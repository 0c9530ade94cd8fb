"""The training loop: micro-batches to gradients, gradients to a step, a line of metrics, a save now and then."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dsv3rt.errors import UserError
from dsv3rt_train import checkpointing, losses
from dsv3rt_train.balance import LoadObserver, SequenceBalance, update_biases
from dsv3rt_train.data.batches import Batches, MicroBatch
from dsv3rt_train.model.build import TrainableModel, one_graph_for_all_layers
from dsv3rt_train.optimizer import make_optimizers
from dsv3rt_train.settings import Settings

Metrics = dict[str, Any]
METRICS_FILE = "metrics.jsonl"


class Trainer:
    """One run. `observer` must be among the observers the model was assembled with."""

    def __init__(
        self, model: TrainableModel, observer: LoadObserver, batches: Batches, settings: Settings, folder: Path
    ) -> None:
        self.model, self.observer, self.batches, self.settings, self.folder = model, observer, batches, settings, folder
        self.parameters = [p for _, p in model.named_parameters() if p.requires_grad]
        self.optimizers = make_optimizers(
            model.named_parameters(), name=settings.optimizer, lr=settings.lr, weight_decay=settings.weight_decay
        )
        if settings.compile:
            model.compile()
        self.balance: SequenceBalance | None = None
        if settings.balance_weight:
            self.balance = SequenceBalance(model.routers(), observer, model.config.num_experts_per_tok)
        self.next_step = checkpointing.restore(folder, model, self.optimizers, settings)

    @contextlib.contextmanager
    def _forward_pass(self) -> Iterator[None]:
        """What the settings ask of every pass through the model."""
        with contextlib.ExitStack() as stack:
            if self.settings.bf16:
                stack.enter_context(torch.autocast(self.parameters[0].device.type, torch.bfloat16))
            if self.settings.compile:
                stack.enter_context(one_graph_for_all_layers())
            yield

    def step(self) -> Metrics:
        """One optimizer step. Raises UserError when the loss is no longer a number."""
        started, number, settings = time.perf_counter(), self.next_step, self.settings
        device = self.parameters[0].device
        batches = [batch.to(device) for batch in self.batches.step(number)]
        self.observer.reset()
        learnt = self._learn_drafts(batches) if settings.drafts else self._learn(batches, number)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, settings.clip))
        if norm != norm:
            raise UserError(
                f"the loss is not a number at step {number}", fix="lower --lr, or resume from an earlier save"
            )
        lr = settings.lr_at(number)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        update_biases(self.model.routers(), self.observer, settings.bias_speed_at(number))
        self.next_step = number + 1
        seconds = time.perf_counter() - started
        return {
            "step": number,
            **learnt,
            "lr": lr,
            "grad_norm": norm,
            "tokens": sum(int(batch.real_BT.sum()) for batch in batches),
            "seconds": round(seconds, 3),
            "busiest": {layer: round(times, 4) for layer, times in self.observer.busiest().items()},
        }

    def _learn(self, batches: list[MicroBatch], number: int) -> Metrics:
        """Gradients of the whole objective."""
        settings = self.settings
        targets = sum(int(batch.learn_BT[:, 1:].sum()) for batch in batches)
        documents = sum(len(batch.ids_BT) for batch in batches)
        mtp_weight = settings.mtp_weight_at(number) if self.model.prediction is not None else 0.0
        total = {"loss": 0.0, "balance": 0.0, "mtp": 0.0, "mtp_count": 0, "agrees": 0, "compared": 0}
        for batch in batches:
            with self._forward_pass():
                part = losses.compute(
                    self.model, batch, self.observer, mtp_share=settings.mtp_share if mtp_weight else 0.0
                )
            loss = part.next_sum / targets
            if part.mtp_sum is not None:
                # its sum runs over fewer documents: scale it up to what all of them would give
                loss = loss + part.mtp_sum * (mtp_weight * part.next_count / max(1, part.mtp_count) / targets)
                total["mtp"] += float(part.mtp_sum.detach())
            if self.balance is not None:
                balance = self.balance.take() * (len(batch.ids_BT) / documents)
                loss = loss + settings.balance_weight * balance
                total["balance"] += float(balance.detach())
            loss.backward()
            total["loss"] += float(part.next_sum.detach())
            total["mtp_count"] += part.mtp_count
            total["agrees"] += part.mtp_agrees
            total["compared"] += part.mtp_compared
        metrics: Metrics = {"loss": total["loss"] / max(1, targets), "targets": targets}
        if self.balance is not None:
            metrics["balance_loss"] = total["balance"]
        if total["mtp_count"]:
            metrics["mtp_loss"] = total["mtp"] / total["mtp_count"]
            metrics["mtp_agreement"] = total["agrees"] / max(1, total["compared"])
        return metrics

    def _learn_drafts(self, batches: list[MicroBatch]) -> Metrics:
        """Gradients of the prediction module alone."""
        targets = sum(int(batch.learn_BT[:, 1:].sum()) for batch in batches)
        applications = self.settings.drafts
        total, agrees, compared = 0.0, [0] * applications, [0] * applications
        for batch in batches:
            with self._forward_pass():
                part = losses.compute_drafts(self.model, batch, self.observer, applications=applications)
            (part.total / (targets * applications)).backward()
            total += float(part.total.detach())
            for d in range(applications):
                agrees[d] += part.agrees[d]
                compared[d] += part.compared[d]
        by_draft = [agree / max(1, count) for agree, count in zip(agrees, compared, strict=True)]
        loss = total / max(1, sum(compared))
        return {
            "loss": loss,
            "targets": targets,
            "mtp_loss": loss,
            "mtp_agreement": by_draft[0],
            "agreement_by_draft": by_draft,
        }

    def run(
        self, *, save_every: int, stop_at: int | None = None, report: Callable[[Metrics], None] | None = None
    ) -> None:
        """Go on until `settings.steps`, or only to `stop_at`. Metrics of steps that are repeated are dropped first."""
        last = min(self.settings.steps, stop_at or self.settings.steps)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / METRICS_FILE
        kept = (
            [line for line in path.read_text().splitlines() if _step_of(line) < self.next_step]
            if path.is_file()
            else []
        )
        path.write_text("".join(line + "\n" for line in kept))
        with path.open("a") as file:
            while self.next_step < last:
                metrics = self.step()
                saved = self.next_step % save_every == 0 or self.next_step == last
                if saved:
                    loads = self.observer.shares()
                    metrics["load"] = {layer: [round(times, 3) for times in loads[layer]] for layer in loads}
                file.write(json.dumps(metrics) + "\n")
                file.flush()
                if report is not None:
                    report(metrics)
                if saved:
                    checkpointing.save(self.folder, self.next_step, self.model, self.optimizers, self.settings)


def last_metrics(folder: Path) -> Metrics:
    """The newest line of a run's metrics."""
    metrics: Metrics = json.loads((folder / METRICS_FILE).read_text().splitlines()[-1])
    return metrics


def _step_of(line: str) -> int:
    """The step of a metrics line; a line cut off by a crash counts as the last of all."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return 1 << 60

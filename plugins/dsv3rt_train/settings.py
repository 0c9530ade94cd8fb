"""What decides the course of a training run, and the schedules that follow from it."""

from __future__ import annotations

from dataclasses import dataclass

from dsv3rt.errors import UsageError

_MUCH = 1e9
_BOUNDS: dict[str, tuple[float, float]] = {
    "steps": (1, _MUCH),
    "warmup": (0, _MUCH),
    "decay_share": (0, 1),
    "final_lr": (0, 1),
    "lr": (1e-9, _MUCH),
    "weight_decay": (0, _MUCH),
    "clip": (1e-9, _MUCH),
    "tokens": (16, _MUCH),
    "micro_batches": (1, _MUCH),
    "mtp_weight": (0, _MUCH),
    "mtp_weight_late": (0, _MUCH),
    "mtp_share": (0, 1),
    "seed": (0, _MUCH),
    "drafts": (0, _MUCH),
    "bias_speed": (0, _MUCH),
    "balance_weight": (0, _MUCH),
}
"""Least and greatest value of every number that has them."""


@dataclass(frozen=True)
class Settings:
    """Two runs with equal settings and data give equal models on one machine with one number of threads."""

    steps: int
    warmup: int = 40
    decay_share: float = 0.3
    """The last part of the steps, over which the learning rate falls in a straight line to `final_lr` of its height."""
    final_lr: float = 0.02
    lr: float = 5e-3
    optimizer: str = "muon"
    """muon or adamw."""
    weight_decay: float = 0.1
    clip: float = 1.0
    tokens: int = 3072
    """Padded tokens a micro-batch."""
    micro_batches: int = 2
    seed: int = 0
    mtp_weight: float = 0.3
    mtp_weight_late: float = 0.1
    """From where the learning rate begins to fall."""
    mtp_share: float = 1.0
    """Share of the documents of a micro-batch that train the prediction module."""
    drafts: int = 0
    """If not 0, only the prediction module learns, applied so many times in a row, towards the frozen main model."""
    bias_speed: float = 0.001
    """Per step; 0 over the last tenth of the steps."""
    balance_weight: float = 0.0
    """Of the sequence-wise balance loss; V3 took 0.0001."""
    fp8: bool = False
    bf16: bool = False
    """Run products under bfloat16 autocast; weights and optimizer stay float32."""
    compile: bool = False
    """torch.compile the blocks."""

    def __post_init__(self) -> None:
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            # also false for what is no number
            if not least <= value <= most:
                reach = f"from {least:g} to {most:g}" if most < _MUCH else f"not below {least:g}"
                raise UsageError(f"{name.replace('_', '-')} {value:g} makes no sense", fix=f"give a number {reach}")
        if self.optimizer not in ("muon", "adamw"):
            raise UsageError(f"unknown optimizer {self.optimizer!r}", fix="known: muon, adamw")

    @property
    def decay_from(self) -> int:
        """The step at which the learning rate begins to fall."""
        return round(self.steps * (1 - self.decay_share))

    def lr_at(self, step: int) -> float:
        """Warm-up, plateau, straight fall."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        if step < self.decay_from:
            return self.lr * rise
        left = (self.steps - step) / max(1, self.steps - self.decay_from)
        return self.lr * rise * (self.final_lr + (1 - self.final_lr) * left)

    def mtp_weight_at(self, step: int) -> float:
        return self.mtp_weight if step < self.decay_from else self.mtp_weight_late

    def bias_speed_at(self, step: int) -> float:
        return self.bias_speed if step < 0.9 * self.steps else 0.0

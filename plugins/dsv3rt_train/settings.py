"""What decides the course of a training run, and the schedules that follow from it."""

from __future__ import annotations

from dataclasses import dataclass

from dsv3rt.errors import UsageError


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
    """torch.compile attention."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.tokens < 16 or self.micro_batches < 1:
            raise UsageError("steps, tokens and micro-batches must be positive", fix="give larger numbers")
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

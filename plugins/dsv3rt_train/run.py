"""One training run from files to files: what `dsv3rt train run` does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsv3rt.assembly import parse_device
from dsv3rt.config import ModelConfig
from dsv3rt.errors import UsageError, UserError
from dsv3rt.plugin_manager import Plugins, discover
from dsv3rt.weights.source import Checkpoint
from dsv3rt_train import checkpointing, export, plots
from dsv3rt_train.balance import LoadObserver
from dsv3rt_train.data.batches import Batches
from dsv3rt_train.data.documents import Corpus, Encoder, read_records
from dsv3rt_train.grow import grow
from dsv3rt_train.loop import Metrics, Trainer, last_metrics
from dsv3rt_train.lora import WEIGHTS_FILE, Adapter, LoraSettings, merge
from dsv3rt_train.model.build import (
    TrainableModel,
    adapter_of,
    assemble,
    freeze_base,
    freeze_main,
    initialise,
    load_weights,
)
from dsv3rt_train.settings import Settings

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
_PLAN_FILE = "run.json"


@dataclass(frozen=True)
class Plan:
    """Everything `dsv3rt train run` was told; see its help."""

    out: Path
    data: tuple[Path, ...]
    steps: int
    config: Path | None = None
    tokenizer: Path | None = None
    base: Path | None = None
    warmup: int = 40
    decay_share: float = 0.3
    lr: float = 5e-3
    optimizer: str = "muon"
    weight_decay: float = 0.1
    clip: float = 1.0
    tokens: int = 3072
    micro_batches: int = 2
    max_length: int = 320
    mtp_weight: float = 0.3
    mtp_weight_late: float = 0.1
    mtp_share: float = 1.0
    drafts: int = 0
    bias_speed: float = 0.001
    balance_weight: float = 0.0
    fp8: bool = False
    bf16: bool = False
    compile: bool = False
    attention: str | None = None
    routing: str | None = None
    plugin: tuple[str, ...] = ()
    device: str = "cpu"
    threads: int | None = None
    lora: int | None = None
    lora_alpha: float = 16.0
    lora_targets: str = ""
    seed: int = 0
    stop_at: int | None = None
    save_every: int = 50

    def settings(self) -> Settings:
        names = Settings.__dataclass_fields__.keys() & Plan.__dataclass_fields__.keys()
        return Settings(**{name: getattr(self, name) for name in names})

    def adapters(self) -> LoraSettings | None:
        if self.lora is None:
            return None
        if self.base is None:
            raise UsageError("--lora adapts a checkpoint", fix="give it with --from")
        targets = tuple(filter(None, self.lora_targets.split(",")))
        return LoraSettings(self.lora, self.lora_alpha, targets or LoraSettings().targets)

    def config_file(self) -> Path:
        if (self.config is None) == (self.base is None):
            raise UsageError("say what to train", fix="give either --config (a new model) or --from (a checkpoint)")
        path = self.config or (self.base or Path()) / "config.json"
        if not path.is_file():
            raise UserError(f"{path} does not exist", fix="name a config.json, or a checkpoint folder")
        return path

    def tokenizer_folder(self) -> Path:
        folder = self.tokenizer or self.base
        if folder is None:
            raise UsageError("a new model needs a tokenizer", fix="give --tokenizer FOLDER")
        return folder


def train(plan: Plan, report: Callable[[Metrics], None] | None = None) -> dict[str, Any]:
    """Run to the end and export. Raises UserError."""
    parse_device(plan.device)
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    raw = json.loads(plan.config_file().read_text())
    settings = plan.settings()
    if plan.lora is not None:
        # the base stays as it is: no balancing, and its prediction module keeps to it
        settings = replace(settings, bias_speed=0.0, balance_weight=0.0, mtp_weight=0.0, mtp_weight_late=0.0)
    if plan.drafts:
        settings = replace(settings, bias_speed=0.0, balance_weight=0.0)
    trainer = _prepare(plan, raw, settings)
    remembered = {"config": raw, "tokenizer": str(plan.tokenizer_folder().resolve())}
    (plan.out / _PLAN_FILE).write_text(json.dumps(remembered, indent=2) + "\n")
    trainer.run(save_every=plan.save_every, stop_at=plan.stop_at, report=report)
    settings_of_adapter = plan.adapters()
    if settings_of_adapter is not None:
        folder = plan.out / "adapter"
        adapter_of(trainer.model, settings_of_adapter).save(folder, str(plan.base))
        size = (folder / WEIGHTS_FILE).stat().st_size
    else:
        folder = plan.out / "checkpoint"
        size = _write(trainer.model.official(), folder, raw, plan.tokenizer_folder(), fp8=plan.fp8)
    picture = plots.draw(plan.out)
    last = last_metrics(plan.out)
    return {
        "checkpoint": str(folder),
        "bytes": size,
        "steps": trainer.next_step,
        "png": str(picture),
        **{key: last.get(key) for key in ("loss", "mtp_loss", "mtp_agreement", "busiest")},
    }


def _prepare(plan: Plan, raw: dict[str, Any], settings: Settings) -> Trainer:
    plain = {key: value for key, value in raw.items() if key != "quantization_config"}
    config = ModelConfig.from_dict(plain)
    encoder = Encoder.from_folder(plan.tokenizer_folder())
    corpus = Corpus.stream(encoder, read_records(plan.data), plan.out / "corpus", max_length=plan.max_length)
    if int(corpus.ids.max()) >= config.vocab_size:
        raise UserError(f"the tokenizer has more tokens than vocab_size {config.vocab_size}", fix="use the model's own")
    plugins: Plugins = discover(plan.plugin)
    observer = LoadObserver(config, plan.device)
    slots = {"attention": plan.attention, "routing": plan.routing}
    model = assemble(config, plugins, [observer], **slots, fp8=plan.fp8, lora=plan.adapters(), device=plan.device)
    if plan.base is not None:
        load_weights(model, Checkpoint(plan.base), torch.device(plan.device))
        if plan.lora is not None:
            freeze_base(model, settings.seed)
    else:
        initialise(model, settings.seed)
    if plan.drafts:
        freeze_main(model)
    pad = config.pad_token_id if config.pad_token_id is not None else encoder.eos
    batches = Batches(corpus, tokens=plan.tokens, micro_batches=plan.micro_batches, seed=plan.seed, pad_id=pad)
    return Trainer(model, observer, batches, settings, plan.out)


def _write(official: Mapping[str, Tensor], folder: Path, raw: dict[str, Any], tokenizer: Path, *, fp8: bool) -> int:
    size = export.write_tensors(official, folder, raw, fp8=fp8)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
    return size


def export_run(run: Path, out: Path, *, fp8: bool) -> dict[str, Any]:
    """The newest save of a run as an official checkpoint. Raises UserError."""
    path = run / _PLAN_FILE
    if not path.is_file() or not (run / checkpointing.FILE).is_file():
        raise UserError(f"{run} holds no save of a training run", fix="name the OUT folder of `dsv3rt train run`")
    remembered = json.loads(path.read_text())
    plain = {key: value for key, value in remembered["config"].items() if key != "quantization_config"}
    model = assemble(ModelConfig.from_dict(plain), discover())
    step = checkpointing.read_weights(run, model)
    size = _write(model.official(), out, remembered["config"], Path(remembered["tokenizer"]), fp8=fp8)
    return {"folder": str(out), "step": step, "bytes": size}


def merge_adapter(base: Path, adapter: Path, out: Path, *, fp8: bool) -> dict[str, Any]:
    """The checkpoint `base` with a LoRA adapter merged into its matrices. Raises UserError."""
    raw, model = _read(base)
    read = Adapter.read(adapter)
    size = _write(merge(model.official(), read), out, raw, base, fp8=fp8)
    return {"folder": str(out), "merged": len(read.pairs), "bytes": size}


def grow_checkpoint(base: Path, out: Path, *, layers: int) -> dict[str, Any]:
    """The checkpoint `base` with new layers that do nothing yet, in float32. Raises UserError."""
    raw, model = _read(base)
    grown = grow(model.official(), model.config, layers)
    size = _write(grown, out, {**raw, "num_hidden_layers": layers}, base, fp8=False)
    return {"folder": str(out), "layers": layers, "parameters": sum(t.numel() for t in grown.values()), "bytes": size}


def _read(base: Path) -> tuple[dict[str, Any], TrainableModel]:
    """A checkpoint's config.json, and its weights in float32. Raises UserError."""
    if not (base / "config.json").is_file():
        raise UserError(f"{base} has no config.json", fix="name a checkpoint folder")
    raw = json.loads((base / "config.json").read_text())
    plain = {key: value for key, value in raw.items() if key != "quantization_config"}
    model = assemble(ModelConfig.from_dict(plain), discover())
    load_weights(model, Checkpoint(base), torch.device("cpu"))
    return raw, model

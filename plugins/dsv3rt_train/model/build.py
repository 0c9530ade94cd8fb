"""Assemble a model to train: any attention, routing and head of the registry, matrices from the `train` slot."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dsv3rt.assembly import build, resolve_plan
from dsv3rt.config import ModelConfig
from dsv3rt.errors import UsageError
from dsv3rt.interfaces import LoadsItself, RoutingObserver, TensorSource
from dsv3rt.model.decoder import Decoder
from dsv3rt.model.rope import Rope, inverse_frequencies
from dsv3rt.plugin_manager import Plugins
from dsv3rt_train.lora import Adapter, LoraSettings
from dsv3rt_train.model.adapters import LearningAdapter
from dsv3rt_train.model.experts import TrainableExperts
from dsv3rt_train.model.prediction import PredictionModule, TrainableHead


@dataclass(frozen=True)
class TrainableModel:
    """The assembled decoder and, if the config has one, its prediction module; float32, on CPU or GPU."""

    config: ModelConfig
    decoder: Decoder
    head: TrainableHead | None

    @property
    def prediction(self) -> PredictionModule | None:
        return self.head.module if self.head is not None else None

    def roots(self) -> list[tuple[str, nn.Module]]:
        """The module trees with the official prefix of each."""
        trees: list[tuple[str, nn.Module]] = [("", self.decoder)]
        return trees + ([("model.layers.", self.head)] if self.head is not None else [])

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name, parameter), experts stacked."""
        for prefix, tree in self.roots():
            for name, parameter in tree.named_parameters():
                yield prefix + name, parameter

    def routers(self) -> dict[int, nn.Module]:
        """Layer -> router, wherever a mixture of experts is."""
        found: dict[int, nn.Module] = {}
        for _, tree in self.roots():
            for module in tree.modules():
                if hasattr(module, "gate") and hasattr(module, "experts") and hasattr(module, "layer"):
                    found[int(module.layer)] = module.gate  # type: ignore[arg-type, assignment]
        return dict(sorted(found.items()))

    def compile(self) -> None:
        """Compile the blocks, forward and backward: one full graph for all layers of a kind and the module's block.

        To be used under `one_graph_for_all_layers`.
        """
        for block in [*self.decoder.model.layers, *([] if self.prediction is None else [self.prediction.block])]:
            block.compile(dynamic=True, fullgraph=True)

    def official(self) -> dict[str, Tensor]:
        """Every tensor of the checkpoint by its official name (float32, detached, experts unstacked)."""
        named: dict[str, Tensor] = {}
        for prefix, tree in self.roots():
            for path, module in tree.named_modules():
                base = prefix + path + ("." if path else "")
                if isinstance(module, TrainableExperts):
                    named.update({base + name: tensor.detach() for name, tensor in module.official().items()})
                    continue
                if isinstance(module, LearningAdapter):
                    continue
                base = base.removesuffix("base.")
                for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                    if name not in module._non_persistent_buffers_set:
                        named[base + name] = tensor.detach()
        return named


@contextlib.contextmanager
def one_graph_for_all_layers() -> Iterator[None]:
    """What `compile` needs while the model runs: the number of a layer is an input, batches as long as wide are nothing
    special, and no shape ends in an error."""
    with (
        torch._dynamo.config.patch(allow_unspec_int_on_nn_module=True, recompile_limit=64),
        torch.fx.experimental._config.patch(use_duck_shape=False),  # type: ignore[attr-defined]
    ):
        yield


def _quantization(fp8: bool, lora: LoraSettings | None) -> str:
    """The `train` slot's options as the command line writes them."""
    text = f"train:numerics={'fp8' if fp8 else 'float32'}"
    return text if lora is None else f"{text},lora={lora.rank},alpha={lora.alpha},targets={'+'.join(lora.targets)}"


def freeze_base(model: TrainableModel, seed: int) -> None:
    """Only adapters learn; they start as if they were not there."""
    rng = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(("lora_A", "lora_B")))
    for _, _, module in _adapters(model):
        module.start(rng)


def freeze_main(model: TrainableModel) -> None:
    """Only the prediction module learns. Raises UsageError if there is none."""
    if model.prediction is None:
        raise UsageError("this model has no prediction module", fix="set num_nextn_predict_layers to 1 in its config")
    model.decoder.requires_grad_(False)


def _adapters(model: TrainableModel) -> Iterator[tuple[str, str, LearningAdapter]]:
    for prefix, tree in model.roots():
        for path, module in tree.named_modules():
            if isinstance(module, LearningAdapter):
                yield prefix, path, module


def adapter_of(model: TrainableModel, settings: LoraSettings) -> Adapter:
    """What the adapters have learnt."""
    pairs = {prefix + path: (module.lora_A, module.lora_B) for prefix, path, module in _adapters(model)}
    return Adapter(settings, pairs)


def assemble(
    config: ModelConfig,
    plugins: Plugins,
    observers: Sequence[RoutingObserver] = (),
    *,
    attention: str | None = None,
    routing: str | None = None,
    fp8: bool = False,
    lora: LoraSettings | None = None,
    device: str = "cpu",
) -> TrainableModel:
    """The model on `device`, its parameters uninitialised. Raises UserError as assembly does."""
    plan = resolve_plan(
        config,
        plugins,
        attention=attention,
        routing=routing,
        quantization=_quantization(fp8, lora),
        head="mtp_train" if config.num_nextn_predict_layers else "none",
        device=device,
        dtype="float32",
    )
    assembled = build(plan, plugins, observers)
    decoder = assembled.decoder.to_empty(device=device).train()
    head = assembled.head
    assert head is None or isinstance(head, TrainableHead)
    if head is not None:
        head.to_empty(device=device).train()
    model = TrainableModel(config, decoder, head)
    for _, tree in model.roots():
        for module in tree.modules():
            if isinstance(module, Rope):
                module.inv_freq.copy_(inverse_frequencies(config))
    return model


def initialise(model: TrainableModel, seed: int) -> None:
    """Normal weights scaled by fan-in, smaller where a matrix writes to the residual stream; norms one, biases zero."""
    rng = torch.Generator().manual_seed(seed)
    depth = math.sqrt(2 * model.config.num_hidden_layers)

    def fill(tensor: Tensor, std: float) -> None:
        values = torch.empty(tensor.shape).normal_(0, std, generator=rng)
        with torch.no_grad():
            tensor.copy_(values)

    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            fill_value = 0.0 if name.endswith("bias") else 1.0
            torch.nn.init.constant_(parameter, fill_value)
        elif "embed_tokens" in name:
            fill(parameter, 0.1)
        else:
            outward = name.endswith(("o_proj.weight", "down_proj.weight", "experts.down"))
            fill(parameter, 0.6 / math.sqrt(parameter.shape[-1]) / (depth if outward else 1.0))
    for router in model.routers().values():
        if hasattr(router, "e_score_correction_bias"):
            torch.nn.init.zeros_(router.e_score_correction_bias)  # type: ignore[arg-type]


def load_weights(model: TrainableModel, source: TensorSource, device: torch.device) -> None:
    """Take every tensor from an official checkpoint (FP8 ones are dequantized)."""
    for prefix, tree in model.roots():
        done: list[str] = []
        for path, module in tree.named_modules():
            if any(path == root or path.startswith(root + ".") for root in done):
                continue
            base = prefix + path
            if isinstance(module, LoadsItself):
                module.load_tensors(source, base, device)
                done.append(path)
                continue
            owned: list[tuple[str, Any]] = [
                *module.named_parameters(recurse=False),
                *module.named_buffers(recurse=False),
            ]
            for name, tensor in owned:
                if name not in module._non_persistent_buffers_set:
                    with torch.no_grad():
                        tensor.copy_(source.get(f"{base}.{name}", shape=tuple(tensor.shape)))

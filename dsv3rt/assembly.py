"""From a ModelConfig to a plan (which plugin fills which slot) to modules on the meta device.

This is the last place where a hook runs: what `build` returns is a plain module tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import nn

from dsv3rt.config import ModelConfig
from dsv3rt.errors import PluginError, UsageError, UserError
from dsv3rt.interfaces import HeadSite, Options, Quantization, RoutingObserver, Site
from dsv3rt.model.decoder import Block, Decoder
from dsv3rt.model.ffn import MoE, make_ffn
from dsv3rt.plugin_manager import Offer, Owner, Plugins

SLOTS = ("attention", "routing", "quantization", "head")
DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "float32": torch.float32,
        "float16": torch.float16,
        "bfloat16": torch.bfloat16,
        "float8_e4m3fn": torch.float8_e4m3fn,
    }
)
T = TypeVar("T")


@dataclass(frozen=True)
class Choice:
    """What fills a slot."""

    name: str
    options: Options
    owner: Owner

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "options": dict(self.options), "owner": str(self.owner)}


@dataclass(frozen=True)
class AssemblyPlan:
    """Everything assembly needs to know, decided before anything is built."""

    config: ModelConfig
    attention: Choice
    quantization: Choice
    routing: Choice | None
    """None for a model without experts."""
    head: Choice | None
    device: torch.device
    dtype: torch.dtype
    cache_dtype: torch.dtype
    max_context: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, for `--json` and for cache keys."""
        slots = {slot: getattr(self, slot) for slot in SLOTS}
        return {
            **{slot: choice.as_dict() if choice else None for slot, choice in slots.items()},
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "cache_dtype": str(self.cache_dtype).removeprefix("torch."),
            "max_context": self.max_context,
        }


def parse_choice(slot: str, text: str) -> tuple[str, Options]:
    """ "NAME:key=value,key=value" -> (name, options). Raises UsageError."""
    name, _, rest = text.partition(":")
    options: dict[str, str] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UsageError(f"--{slot} {text}: {item!r} is not key=value", fix=f"write --{slot} {name}:key=value")
        options[key.strip()] = value.strip()
    if not name:
        raise UsageError(f"--{slot} {text!r} names no plugin", fix=f"write --{slot} NAME[:key=value,...]")
    return name, MappingProxyType(options)


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def parse_device(text: str | torch.device) -> torch.device:
    """Raises UsageError, also for a device that is not here."""
    try:
        device = torch.device(text)
    except RuntimeError:
        raise UsageError(f"unknown device {text!r}", fix="known: cpu, cuda, cuda:0 and so on") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {text!r} is not supported", fix="known: cpu, cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"there is no device {text}: torch finds {torch.cuda.device_count()} GPUs", fix="use cpu")
    return device


def parse_dtype(text: str | torch.dtype) -> torch.dtype:
    if isinstance(text, torch.dtype):
        return text
    aliases = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp8": "float8_e4m3fn"}
    name = aliases.get(text, text)
    if name not in DTYPES:
        raise UsageError(f"unknown dtype {text!r}", fix=f"known: {', '.join([*DTYPES, *aliases])}")
    return DTYPES[name]


def resolve_plan(
    config: ModelConfig,
    plugins: Plugins,
    *,
    attention: str | None = None,
    routing: str | None = None,
    quantization: str | None = None,
    head: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    cache_dtype: str | torch.dtype | None = None,
    max_context: int | None = None,
) -> AssemblyPlan:
    """Decide what fills each slot. None means the family's default; a head called "none" means no head.

    Raises PluginError (unknown or doubly claimed names), UsageError, or what a `plan_resolved` hook raises.
    """

    def choose(slot: str, text: str) -> Choice:
        name, options = parse_choice(slot, text)
        return Choice(name, options, plugins.find(slot, name).owner)

    where = parse_device(device) if device is not None else default_device()
    compute = parse_dtype(dtype) if dtype is not None else torch.float32 if where.type == "cpu" else torch.bfloat16
    if compute.itemsize == 1:
        raise UsageError("nothing can be computed in 8 bits", fix="--cache-dtype takes fp8, --dtype does not")
    if cache_dtype is not None:
        kept = parse_dtype(cache_dtype)
    else:
        # latents are kept in 16 bits unless full precision was asked for, or is all the checkpoint has
        exact = dtype is not None or config.torch_dtype == "float32"
        kept = torch.float32 if exact and compute == torch.float32 else torch.bfloat16
    if max_context is not None and not 1 <= max_context <= config.max_position_embeddings:
        raise UsageError(
            f"context {max_context} is outside 1..{config.max_position_embeddings}",
            fix="give -c/--ctx-size in that range",
        )
    stored = "fp8_block" if config.quantization else "dense"
    drafting = head or ("mtp" if config.num_nextn_predict_layers and "mtp" in plugins.names("head") else "none")
    plan = AssemblyPlan(
        config=config,
        attention=choose("attention", attention or "mla"),
        quantization=choose("quantization", quantization or stored),
        routing=choose("routing", routing or config.family.routing[config.topk_method])
        if config.n_routed_experts
        else None,
        head=None if drafting == "none" else choose("head", drafting),
        device=where,
        dtype=compute,
        cache_dtype=kept,
        max_context=max_context or config.max_position_embeddings,
    )
    plugins.manager.hook.plan_resolved(plan=plan)
    return plan


def _call(offer: Offer, slot: str, site: Any) -> Any:
    """Run a builder; what it raises is blamed on its plugin."""
    try:
        return offer.builder(site)
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise PluginError(
            f"{slot} {offer.name!r} of plugin {offer.owner} failed to build: {reason}",
            fix=f"choose another with --{slot}",
        ) from error


class _Watched(Mapping[str, str]):
    """A slot's options, which know what they were asked for."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> str:
        self.asked.add(key)
        return self._options[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._options)

    def __len__(self) -> int:
        return len(self._options)


class _NotYet:
    """Stands in for the quantization while the quantization itself is being built."""

    name = "none"


@dataclass(frozen=True)
class Assembled:
    """A model on meta: no weights yet."""

    decoder: Decoder
    head: nn.Module | None
    """Its children are named by official layer index, so its weights load under the prefix "model.layers"."""
    quantization: Quantization
    plan: AssemblyPlan


def build(plan: AssemblyPlan, plugins: Plugins, observers: Sequence[RoutingObserver] = ()) -> Assembled:
    """Build the module tree on the meta device.

    Raises PluginError naming the plugin whose builder failed, and UsageError for an option that no builder read.
    """
    config = plan.config
    choices: dict[str, Choice] = {slot: choice for slot in SLOTS if (choice := getattr(plan, slot))}
    offers = {slot: plugins.find(slot, choice.name) for slot, choice in choices.items()}
    options = {slot: _Watched(choice.options) for slot, choice in choices.items()}

    def site(slot: str, layer: int, prefix: str, quantization: Quantization) -> Site:
        given: Options = options.get(slot, {})
        return Site(config, layer, prefix, quantization, plan.dtype, plan.cache_dtype, plan.device, given)

    placeholder: Any = _NotYet()
    with torch.device("meta"):
        quantization: Quantization = _call(
            offers["quantization"], "quantization", site("quantization", 0, "", placeholder)
        )

        def make_block(layer: int) -> nn.Module:
            prefix = f"model.layers.{layer}"
            attention = _call(
                offers["attention"], "attention", site("attention", layer, f"{prefix}.self_attn", quantization)
            )
            if config.is_moe(layer):
                router = _call(offers["routing"], "routing", site("routing", layer, f"{prefix}.mlp.gate", quantization))
                ffn_site = site("routing", layer, f"{prefix}.mlp", quantization)
                mlp: nn.Module = MoE(ffn_site, router, tuple(observers))
            else:
                mlp = make_ffn(quantization, config.hidden_size, config.intermediate_size, prefix=f"{prefix}.mlp")
            return Block(config, attention, mlp)

        blocks = [make_block(layer) for layer in range(config.num_hidden_layers)]
        lm_head = quantization.linear(config.hidden_size, config.vocab_size, prefix="lm_head")
        decoder = Decoder(config, blocks, lm_head, plan.dtype)
        head: nn.Module | None = None
        if plan.head is not None:
            head_site = HeadSite(
                site("head", config.num_hidden_layers, "model.layers", quantization),
                embed=decoder.model.embed_tokens,
                lm_head=lm_head,
                norm=decoder.model.norm,
                make_block=make_block,
            )
            head = _call(offers["head"], "head", head_site).eval()
    for slot, watched in options.items():
        if unread := set(watched) - watched.asked:
            known = f"known: {', '.join(sorted(watched.asked))}" if watched.asked else "it has none"
            raise UsageError(f"--{slot} {choices[slot].name} has no option {min(unread)!r}", fix=known)
    return Assembled(decoder.eval(), head, quantization, plan)


def without_head(plan: AssemblyPlan) -> AssemblyPlan:
    """The same plan, generating plainly."""
    return replace(plan, head=None)

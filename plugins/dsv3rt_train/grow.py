"""More layers for a trained model, such that it says at first exactly what it said before.

A new layer is a copy of the layer it follows whose matrices that write to the residual stream are zero: it adds nothing
yet, and its other
matrices already read what that layer reads (function-preserving growth, as in Net2Net, arXiv 1511.05641).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from dsv3rt.config import ModelConfig
from dsv3rt.errors import UsageError

_OUTWARD = ("o_proj.weight", "down_proj.weight")
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.*)")


def order(config: ModelConfig, layers: int) -> list[tuple[int, bool]]:
    """The grown model's layers: (source layer, whether it is a new one). New ones follow mixture-of-experts layers,
    evenly spread. Raises UsageError when the config's pattern of dense layers could not be kept."""
    old = config.num_hidden_layers
    sources = [layer for layer in range(old) if config.is_moe(layer)]
    if layers <= old or not sources:
        raise UsageError(f"cannot grow {old} layers to {layers}", fix="more layers, of a mixture-of-experts model")
    extra, result = layers - old, []
    for layer in range(old):
        result.append((layer, False))
        if layer in sources:
            at = sources.index(layer)
            copies = (at + 1) * extra // len(sources) - at * extra // len(sources)
            result += [(layer, True)] * copies
    grown = replace(config, num_hidden_layers=layers)
    if any(grown.is_moe(new) != config.is_moe(source) for new, (source, _) in enumerate(result)):
        raise UsageError(
            "dense and expert layers alternate in this model", fix="grow one whose dense layers come first"
        )
    return result


def grow(official: Mapping[str, Tensor], config: ModelConfig, layers: int) -> dict[str, Tensor]:
    """The tensors of the grown model by official names; prediction modules move behind its last layer."""
    old = config.num_hidden_layers
    named: dict[int, dict[str, Tensor]] = {}
    grown: dict[str, Tensor] = {}
    for name, tensor in official.items():
        match = _LAYER.fullmatch(name)
        if match is None:
            grown[name] = tensor
        else:
            named.setdefault(int(match[1]), {})[match[2]] = tensor
    places = [*order(config, layers), *((layer, False) for layer in sorted(named) if layer >= old)]
    for place, (source, new) in enumerate(places):
        for name, tensor in named[source].items():
            silent = new and name.endswith(_OUTWARD)
            grown[f"model.layers.{place}.{name}"] = torch.zeros_like(tensor) if silent else tensor
    return grown

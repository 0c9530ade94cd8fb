"""Give an assembled model, built on the meta device, the checkpoint's tensors.

Parameters carry official names, so there is no rename table. A module that satisfies `interfaces.LoadsItself` takes
what it needs; of every other module each parameter and persistent buffer is taken by its name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dsv3rt.config import ModelConfig
from dsv3rt.errors import CheckpointError, PluginError
from dsv3rt.interfaces import LoadsItself, TensorSource
from dsv3rt.weights.prefault import Progress, prefault
from dsv3rt.weights.source import Checkpoint

_EMBED, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_log = logging.getLogger("dsv3rt")


@dataclass(frozen=True)
class LoadReport:
    """What loading did."""

    tensors: int
    bytes: int
    """Of the tensors used, as they lie in the files."""
    copied_bytes: int
    """Of the tensors this loader converted or moved; the rest is computed from in place."""
    mtp_unused: int
    """Tensors of MTP modules that no prediction head asked for."""
    unexpected: tuple[str, ...]
    """Tensors nobody asked for and that cannot be explained."""


def load_weights(
    roots: Mapping[str, nn.Module],
    source: Checkpoint,
    config: ModelConfig,
    *,
    device: torch.device,
    progress: Progress | None = None,
) -> LoadReport:
    """Fill modules from `source`: `roots` maps the official name of each module's place to it.

    `{"": decoder, "model.layers": head}` loads a decoder and a head whose children are named by layer index. A module
    that is met twice (a head may hold the decoder's embedding) is loaded where it is met first.
    A parameter gets the dtype it was declared with on meta, unless its module says `keep_stored_dtype = True`: then
    that of the file. On the CPU, a tensor whose dtype fits is not copied but stays a view of the mapped file.

    A cold file is read front to back first. Raises CheckpointError (missing tensor, wrong shape) and PluginError (a
    module left something on meta).
    """
    taker = _Taker(_TiedSource(source) if config.tie_word_embeddings and _HEAD not in source else source, device)
    if device.type == "cpu":
        with_mtp = len(roots) > 1
        prefault([info for info in source.infos.values() if with_mtp or not of_mtp(info.name, config)], progress)
    seen: set[int] = set()
    for prefix, module in (found for root in roots for found in _loadable(roots[root], root, seen)):
        if isinstance(module, LoadsItself):
            module.load_tensors(taker.source, prefix, device)
        else:
            taker.fill(module, prefix)
        if progress:
            progress("taking weights", source.consumed_bytes, source.total_bytes)
    for root in roots.values():
        _check_nothing_on_meta(root)
    mtp, unexpected = _explain(source.unused(), config)
    if unexpected:
        shown = ", ".join(unexpected[:4]) + (f" and {len(unexpected) - 4} more" if len(unexpected) > 4 else "")
        _log.warning("%d tensors of the checkpoint are not used by this model: %s", len(unexpected), shown)
    if progress:
        progress("taking weights", source.total_bytes, source.total_bytes)
    return LoadReport(len(source.consumed), source.consumed_bytes, taker.copied_bytes, mtp, unexpected)


def _loadable(module: nn.Module, prefix: str, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    """(official name, module) of all modules not in `seen`; what is inside one that loads itself is its own concern."""
    if id(module) in seen:
        return
    seen.add(id(module))
    yield prefix, module
    if not isinstance(module, LoadsItself):
        for name, child in module.named_children():
            yield from _loadable(child, f"{prefix}.{name}" if prefix else name, seen)


class _Taker:
    """Fills modules that do not load themselves."""

    def __init__(self, source: TensorSource, device: torch.device) -> None:
        self.source = source
        self.device = device
        self.copied_bytes = 0
        self.filled: dict[int, nn.Parameter] = {}
        """id of a parameter on meta -> its replacement, so that a shared one stays shared."""
        self.kept: list[nn.Parameter] = []
        """Replaced parameters, alive as long as their ids are in use."""

    def fill(self, module: nn.Module, prefix: str) -> None:
        """Replace the module's own parameters and persistent buffers."""
        keep = bool(getattr(module, "keep_stored_dtype", False))
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) not in self.filled:
                tensor = self.take(f"{prefix}.{name}" if prefix else name, parameter, keep)
                self.filled[id(parameter)] = nn.Parameter(tensor, requires_grad=False)
                self.kept.append(parameter)
            setattr(module, name, self.filled[id(parameter)])
        transient = module._non_persistent_buffers_set
        for name, buffer in list(module.named_buffers(recurse=False)):
            if name not in transient:
                module.register_buffer(name, self.take(f"{prefix}.{name}" if prefix else name, buffer, keep))

    def take(self, name: str, declared: Tensor, keep_dtype: bool) -> Tensor:
        stored = self.source.get(name, shape=declared.shape)
        if stored.dtype.is_floating_point != declared.dtype.is_floating_point or stored.dtype.itemsize == 1:
            raise CheckpointError(
                f"{name} is stored as {_short(stored.dtype)}, where {_short(declared.dtype)} is wanted",
                fix="this checkpoint is quantized in a way its config.json does not say",
            )
        taken = stored.to(self.device, stored.dtype if keep_dtype else declared.dtype)
        if taken.data_ptr() != stored.data_ptr():
            self.copied_bytes += taken.nbytes
        return taken


class _TiedSource:
    """A checkpoint with tie_word_embeddings and no lm_head.weight: the embedding stands for it."""

    def __init__(self, source: TensorSource) -> None:
        self.source = source

    def names(self) -> Sequence[str]:
        return (*self.source.names(), _HEAD)

    def __contains__(self, name: str) -> bool:
        return name == _HEAD or name in self.source

    def get(self, name: str, *, shape: Sequence[int] | None = None) -> Tensor:
        return self.source.get(_EMBED if name == _HEAD else name, shape=shape)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_nothing_on_meta(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            owner = model.get_submodule(name.rpartition(".")[0])
            raise PluginError(
                f"{type(owner).__module__}.{type(owner).__name__} left {name} on the meta device",
                fix="its load_tensors must fill it, or it must be persistent and in the checkpoint",
            )


def of_mtp(name: str, config: ModelConfig) -> bool:
    """Whether a tensor belongs to an MTP module: their layers come after the decoder's."""
    layer = _LAYER.match(name)
    return layer is not None and int(layer[1]) >= config.num_hidden_layers


def _explain(unused: Sequence[str], config: ModelConfig) -> tuple[int, tuple[str, ...]]:
    """Sort what nobody asked for: (tensors of MTP modules, the rest that has no explanation)."""
    mtp, unexpected = 0, []
    for name in unused:
        if of_mtp(name, config):
            mtp += 1
        elif not name.endswith("rotary_emb.inv_freq") and not (name == _HEAD and config.tie_word_embeddings):
            unexpected.append(name)
    return mtp, tuple(unexpected)

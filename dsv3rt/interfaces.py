"""What a plugin's builders receive and what the modules they return must satisfy.

Shape legend: B sequences, T new tokens of each, N = B*T tokens, D hidden, K chosen experts, S cache capacity,
V vocabulary.
Tensors that carry activations have the plan's compute dtype (float32 on CPU, bfloat16 on CUDA unless asked otherwise).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from dsv3rt.config import ModelConfig

Cache = tuple[Tensor, ...]
"""One layer's cache: tensors [B, S, ...], token position along dim 1. Its owner alone knows what the rest means."""

Options = Mapping[str, str]
"""What the user wrote after the slot's name: `--routing NAME:key=value` gives {"key": "value"}."""


@dataclass(frozen=True)
class Site:
    """Where a module is being built. Given to every builder; building happens on the meta device."""

    config: ModelConfig
    layer: int
    """Official layer index; MTP module d sits at num_hidden_layers + d."""
    prefix: str
    """Official name of the module, e.g. "model.layers.3.self_attn": its parameters' names continue it."""
    quantization: Quantization
    """Makes every matrix."""
    dtype: torch.dtype
    """Activations' dtype."""
    cache_dtype: torch.dtype
    device: torch.device
    """Where the weights will be (building itself happens on meta)."""
    options: Options = field(default_factory=dict)


class TensorSource(Protocol):
    """A checkpoint as a plugin sees it: tensors by official name, straight from the memory-mapped files."""

    def names(self) -> Sequence[str]: ...

    def __contains__(self, name: str) -> bool: ...

    def get(self, name: str, *, shape: Sequence[int] | None = None) -> Tensor:
        """The tensor as it lies in the file: stored dtype, CPU, zero-copy (possibly unaligned: do not write to it).

        Marks `name` as consumed. Raises CheckpointError when it is missing or `shape` differs.
        """
        ...


@runtime_checkable
class LoadsItself(Protocol):
    """A module that reads its own tensors. Every other module gets each parameter and persistent buffer by its name."""

    def load_tensors(self, source: TensorSource, prefix: str, device: torch.device) -> None:
        """Take `prefix + ".weight"` and so on from `source`; afterwards nothing of this module is on meta."""
        ...


class Attention(Protocol):
    """Slot `attention`: an nn.Module that owns its cache layout."""

    cache_bytes_per_token: int
    """Bytes one token takes in this layer's cache."""

    def make_cache(self, batch: int, capacity: int, device: torch.device) -> Cache:
        """Room for `capacity` tokens of `batch` sequences. Memory must be touched only when written."""
        ...

    def __call__(self, x_BTD: Tensor, positions_BT: Tensor, cache: Cache | None) -> Tensor:
        """Attend from T new tokens, which sit at consecutive `positions_BT` (int64) of each sequence, to all before.

        Writes the new tokens into `cache` in place at their positions, then reads positions 0..position. T tokens at
        once give the same result as T single steps. Positions past the newest may hold stale data: never read them.
        With `cache` None (training, and checks) the T tokens are the whole sequence. Returns [B, T, D].
        """
        ...


@runtime_checkable
class Remembers(Protocol):
    """An Attention that can take up tokens without attending from them: cheaper where no output of theirs is wanted."""

    def remember(self, x_BTD: Tensor, positions_BT: Tensor, cache: Cache) -> None:
        """Write T new tokens into `cache` as `Attention.__call__` does (but for rounding), and nothing else."""
        ...


class Router(Protocol):
    """Slot `routing`: an nn.Module; its parameters are named as the checkpoint does, `weight` and so on."""

    def __call__(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Choose experts: (weights_NK float32, ids_NK int64), ids unique per token; no data-dependent Python."""
        ...


class Experts(Protocol):
    """A layer's routed experts, made by the quantization slot. y = sum_k weights[:, k] * FFN_{ids[:, k]}(x)."""

    def __call__(self, x_ND: Tensor, weights_NK: Tensor, ids_NK: Tensor) -> Tensor: ...


class Quantization(Protocol):
    """Slot `quantization`: owns storage format, kernels, and the reading of its tensors from the checkpoint.

    A token's row of any product must not depend, bitwise, on which other rows are computed with it as long as at most
    16 rows are computed at once: speculation relies on it.
    """

    name: str

    def linear(self, in_features: int, out_features: int, *, prefix: str, bias: bool = False) -> nn.Module:
        """y = x W^T (+ b), x [..., in_features] in the compute dtype. `prefix` is the official name of the matrix."""
        ...

    def experts(self, num_experts: int, hidden: int, intermediate: int, *, prefix: str) -> nn.Module:
        """The experts `prefix + ".{e}.gate_proj"` and so on; see `Experts`."""
        ...

    def describe(self, device: torch.device) -> str:
        """Which kernels will run on `device`, in a few words; says so when it is a slower fallback."""
        ...


@runtime_checkable
class FusesFFN(Protocol):
    """What a Quantization may offer besides: a whole feed-forward network as one module, so that one kernel computes
    it."""

    def ffn(self, hidden: int, intermediate: int, *, prefix: str) -> nn.Module:
        """y = down(silu(gate x) * (up x)); children `gate_proj`, `up_proj`, `down_proj` are named as in the
        checkpoint."""
        ...


@runtime_checkable
class PacksWeights(Protocol):
    """What a Quantization may offer besides: copies of its weights that decoding reads faster, to the same results bit
    for bit. They are made in the background, and nothing waits for them that has not said so."""

    def pack(self, roots: Sequence[nn.Module]) -> None:
        """Begin, once the modules in `roots` are loaded and before any graph of them is made."""
        ...

    def packed(self, timeout_s: float | None = None) -> bool:
        """Wait until the copies are there; False when time ran out."""
        ...

    def expected_share(self, weight_bytes: int, bf16_bytes: int, device: torch.device) -> float:
        """Of the bytes of bfloat16 matrices, the share that decoding will read where there are so many in a model of
        so many. 1 where nothing will be packed."""
        ...

    def saved_bytes_per_token(self, model: nn.Module) -> int:
        """How much less one token reads of `model`, by now, than its weights take as they are stored."""
        ...


class ReadsAsStored:
    """PacksWeights of a format that offers no copies."""

    def pack(self, roots: Sequence[nn.Module]) -> None:
        return

    def packed(self, timeout_s: float | None = None) -> bool:
        return True

    def expected_share(self, weight_bytes: int, bf16_bytes: int, device: torch.device) -> float:
        return 1.0

    def saved_bytes_per_token(self, model: nn.Module) -> int:
        return 0


def packing_of(quantization: Quantization) -> PacksWeights:
    return quantization if isinstance(quantization, PacksWeights) else ReadsAsStored()


@dataclass(frozen=True)
class DraftRule:
    """How the main model will choose its tokens. A head whose drafts are drawn likewise is accepted more often."""

    temperature: float = 0.0
    """0 means greedy."""
    top_k: int = 0
    """0 means all."""
    top_p: float = 1.0
    min_p: float = 0.0
    uniforms: Callable[[int], Tensor] = torch.rand
    """So many fresh numbers in [0, 1), float64 [n] on the CPU, from the answer's own generator."""


@dataclass(frozen=True)
class Drafts:
    """What a head proposes to follow the newest token."""

    token_ids: Sequence[int]
    """k drafts: k may be less than was asked for, or 0."""
    candidates: tuple[Tensor, Tensor] | None = None
    """(ids int64 [k, C], probabilities float32 [k, C]): the distribution each draft was drawn from, zero elsewhere;
    ids are unique within a row. None means every draft was certain (a point mass)."""


@dataclass(frozen=True)
class Accepted:
    """What came of drafts that the main model has run over."""

    settled: Sequence[int]
    """The accepted ones and the token after them: at least one."""
    drafts: Drafts
    """The next ones."""


class Compiled(Protocol):
    """A module's forward, compiled as soon as that is ready. To be called under torch.inference_mode."""

    def __call__(self, *args: Any) -> Any:
        """Tensors keep their shapes from call to call, but for what `Compile` says. Caches should be the same object
        from call to call, and may be cut to one of a few capacities."""
        ...

    def prepare(self, *args: Any) -> None:
        """Ask for the graph for such arguments, and run nothing."""
        ...

    def ready(self, *args: Any) -> bool:
        """Ask for it likewise, and say whether a call would run it. Waits for it where calls do."""
        ...


class Compile(Protocol):
    """Compiles, if the user asked for that."""

    def __call__(self, module: nn.Module, token_dims: Mapping[int, int] | None = None) -> Compiled:
        """token_dims: argument index -> a dimension of it that counts tokens: any number up to 16 shares one graph."""
        ...


class DraftSession(Protocol):
    """A head's state for one conversation (its own caches). Positions are those of the main model."""

    lookback: int
    """How many rows before the first changed token depend on it: after a rewind to `length` tokens, rows from
    length - lookback on are observed again."""

    @property
    def observed(self) -> int:
        """Rows observed so far, less those a rewind has taken back."""
        ...

    def observe(self, token_ids: Sequence[int], hidden_TD: Tensor, position: int) -> None:
        """The main model has settled on T tokens: hidden_TD[i] is its hidden state (before the final norm, see
        `Decoder.forward`) at position+i, and token_ids[i] is the token that *follows* there (at position+i+1).

        `hidden_TD` may have more rows than there are tokens: they belong to rejected drafts. Called for every settled
        position, in order, without gaps. After a rewind positions step back: everything at or past `position` is stale.
        """
        ...

    def draft(self, count: int, rule: DraftRule) -> Drafts:
        """Propose up to `count` tokens after the last token observed. Leaves no trace of rejected drafts."""
        ...


@runtime_checkable
class PreparesSteps(Protocol):
    """A DraftSession that knows which graphs it will need."""

    def prepare(self, rule: DraftRule) -> None:
        """Ask for those that answers by this rule will use first."""
        ...


@runtime_checkable
class AcceptsDrafts(Protocol):
    """A DraftSession that can also accept, observe and draft again in one go (one graph, one wait)."""

    def accept(
        self, drafts: Drafts, logits_TV: Tensor, hidden_TD: Tensor, position: int, count: int, rule: DraftRule
    ) -> Accepted | None:
        """Settle `drafts`, observe what was settled, and draft `count` (at least 1) more.

        logits_TV, hidden_TD: the decoder's over the newest token, which sits at `position`, and its drafts. With
        temperature 0 tokens are the likeliest ones, else they have the distribution of `rule` exactly. None, with
        nothing changed that counts, when it cannot now: more or less than what is before `position` has been observed,
        the logits are not numbers, or the distribution is not one that it can draw from.
        """
        ...


class PredictionHead(Protocol):
    """Slot `head`: drafts the tokens after next. An nn.Module (it may hold no parameters)."""

    max_drafts: int
    """Most drafts it can usefully propose in one step."""

    def start(self, capacity: int, device: torch.device, compile: Compile) -> DraftSession:
        """A fresh session with room for `capacity` tokens."""
        ...


@runtime_checkable
class ChecksItself(Protocol):
    """A PredictionHead that looks at its weights once they are loaded."""

    def check(self) -> None:
        """Raises CheckpointError when they are damaged: generation then goes on without drafts."""
        ...


@dataclass(frozen=True)
class HeadSite:
    """What a prediction head's builder receives beside its Site: what the head shares with the main model."""

    site: Site
    embed: nn.Module
    """ids [..., T] -> [..., T, D]"""
    lm_head: nn.Module
    """normed hidden [..., D] -> logits [..., V] (compute dtype)"""
    norm: nn.Module
    """The final norm of the main model."""
    make_block: Callable[[int], nn.Module]
    """make_block(layer) -> a whole decoder block (norms, attention, MoE), as `dsv3rt.model.Block`."""


AttentionBuilder = Callable[[Site], nn.Module]
RoutingBuilder = Callable[[Site], nn.Module]
QuantizationBuilder = Callable[[Site], Quantization]
"""The Site's own `quantization` is the builder's concern to set: it receives a placeholder that must not be used."""
HeadBuilder = Callable[[HeadSite], nn.Module]


class RoutingObserver(Protocol):
    """Sees every routing decision, changes nothing. Only consulted on the uncompiled path and in training."""

    def __call__(self, layer: int, weights_NK: Tensor, ids_NK: Tensor) -> None: ...


class Tokenizer(Protocol):
    """Text <-> ids."""

    vocab_size: int
    """One more than the highest id; the model's own vocabulary may be larger or smaller."""
    bos_id: int | None
    eos_ids: frozenset[int]
    special_ids: frozenset[int]
    """Control tokens: `decode` and streaming leave them out unless told otherwise."""
    add_bos: bool
    """Whether a plain prompt of this checkpoint starts with BOS (a chat template writes its own)."""
    strips_leading_space: bool
    """Whether `decode` drops one space at the very beginning (sentencepiece's dummy prefix)."""

    def encode(self, text: str, *, add_bos: bool, allow_special: bool) -> list[int]:
        """`allow_special` parses control tokens written in the text (templates need it, user text must not)."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str: ...

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token (special tokens: their text); nothing for an id the vocabulary lacks."""
        ...


class ChatFormat(Protocol):
    """Messages -> the prompt text the model was trained on."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str: ...

    @property
    def reasoning_tags(self) -> tuple[str, str] | None:
        """("<think>", "</think>") when the model thinks aloud between such tags."""
        ...


TokenizerBuilder = Callable[[Path], Tokenizer | None]
ChatFormatBuilder = Callable[[Path], ChatFormat | None]
Initialiser = Callable[[str, Tensor, "ModelConfig"], None]
"""(official parameter name, tensor to fill in place, config)"""

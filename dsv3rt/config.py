"""ModelConfig: what a checkpoint's config.json means, read strictly.

A key that changes the maths and is not understood is an error; one that does not is listed once in `ignored_keys`.
Sources: the official configuration_deepseek.py of V2 and V3, and the config.json of each family in `FAMILIES`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3rt.errors import ConfigError


@dataclass(frozen=True)
class Yarn:
    """YaRN context extension (arXiv 2309.00071), with DeepSeek's two attention factors."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0

    @staticmethod
    def magnitude(factor: float, mscale: float) -> float:
        """m(s) = 0.1 s ln(factor) + 1."""
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    @property
    def cos_sin_factor(self) -> float:
        """Multiplies cos and sin."""
        return self.magnitude(self.factor, self.mscale) / self.magnitude(self.factor, self.mscale_all_dim)

    @property
    def softmax_factor(self) -> float:
        """Multiplies the softmax scale, at any context length."""
        return self.magnitude(self.factor, self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0


@dataclass(frozen=True)
class BlockFP8:
    """`quantization_config` of the official FP8 checkpoints."""

    block_rows: int = 128
    block_cols: int = 128
    scale_fmt: str | None = None
    """"ue8m0": activation scales are rounded up to powers of two (V3.1 on)."""
    lm_head: bool = False
    """Whether the output head is stored so as well; official checkpoints keep it in 16 bits."""


@dataclass(frozen=True)
class Family:
    """What a `model_type` implies where config.json is silent, and which plugin names fill the slots by default."""

    title: str
    topk_method: str
    scoring_func: str
    norm_topk_prob: bool
    rms_norm_eps: float
    routing: Mapping[str, str]
    """topk_method -> name of the router."""


_V3_ROUTING = {"noaux_tc": "bias_topk"}
_V2_ROUTING = {"greedy": "softmax_topk", "group_limited_greedy": "softmax_group_topk", "noaux_tc": "bias_topk"}

FAMILIES: Mapping[str, Family] = {
    "deepseek_v3": Family("DeepSeek-V3", "noaux_tc", "sigmoid", True, 1e-6, _V3_ROUTING),
    "kimi_k2": Family("Kimi-K2", "noaux_tc", "sigmoid", True, 1e-6, _V3_ROUTING),
    "glm4_moe_lite": Family("GLM-4.7-Flash", "noaux_tc", "sigmoid", True, 1e-5, _V3_ROUTING),
    "deepseek_v2": Family("DeepSeek-V2", "greedy", "softmax", False, 1e-6, _V2_ROUTING),
}


@dataclass(frozen=True)
class ModelConfig:
    """The architecture, with the official names. Sizes in elements."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None
    attention_bias: bool = False
    num_nextn_predict_layers: int = 0
    n_routed_experts: int = 0
    n_shared_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    first_k_dense_replace: int = 0
    moe_layer_freq: int = 1
    n_group: int = 1
    topk_group: int = 1
    topk_method: str = "noaux_tc"
    scoring_func: str = "sigmoid"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_interleave: bool = True
    yarn: Yarn | None = None
    max_position_embeddings: int = 4096
    tie_word_embeddings: bool = False
    torch_dtype: str = "bfloat16"
    quantization: BlockFP8 | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    initializer_range: float = 0.02
    ignored_keys: tuple[str, ...] = ()

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """(P+R)^-0.5, times YaRN's factor."""
        return float(self.qk_head_dim**-0.5) * (self.yarn.softmax_factor if self.yarn else 1.0)

    def is_moe(self, layer: int) -> bool:
        """Whether block `layer` has routed experts (MTP modules, at num_hidden_layers and up, always do if any has)."""
        return (
            self.n_routed_experts > 0
            and layer >= self.first_k_dense_replace
            and (layer % self.moe_layer_freq == 0 or layer >= self.num_hidden_layers)
        )

    @classmethod
    def from_folder(cls, folder: Path) -> ModelConfig:
        """Read `folder`/config.json. Raises ConfigError."""
        path = folder / "config.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"no config.json in {folder}", fix="give the folder of an official checkpoint") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ConfigError(f"{path} is not readable JSON: {error}", fix="download it again") from None
        if not isinstance(raw, dict):
            raise ConfigError(f"{path} does not hold a JSON object", fix="download it again")
        return cls.from_dict(raw)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Understand an official config. Raises ConfigError."""
        return _Reader(raw).read()


# Keys that say nothing about the maths of inference (or restate it) and may take any value.
_INERT = frozenset(
    """
    architectures auto_map transformers_version use_cache attention_dropout aux_loss_alpha seq_aux
    pretraining_tp ep_size output_router_logits router_aux_loss_coef _name_or_path return_dict
    output_hidden_states output_attentions chunk_size_feed_forward is_encoder_decoder id2label
    label2id problem_type dtype num_key_value_heads head_dim qk_head_dim mlp_layer_types
    num_local_experts num_mtp_layers partial_rotary_factor use_bidirectional_attention name_or_path
    torchscript bad_words_ids task_specific_params sep_token_id decoder_start_token_id use_mla
    num_experts_per_token unsloth_fixed unsloth_version dsv3rt
    """.split()
)


_MOST = 1e15
"""No number in a config is larger: whole ones up to here are exact as floats."""


class _Reader:
    """Takes keys out of config.json, or an object in it, one by one, so that what is left over is known."""

    def __init__(self, raw: Mapping[str, Any], where: str = "") -> None:
        self.raw = dict(raw)
        self.where = where
        """In front of a key where it is named."""
        self.used: set[str] = set()

    def take(self, key: str, default: Any = None) -> Any:
        self.used.add(key)
        value = self.raw.get(key)
        return default if value is None else value

    def number(self, key: str, default: float | None = None, *, minimum: float = 0) -> float:
        value = self.take(key, default)
        if value is None:
            raise ConfigError(f"config.json lacks {self.where}{key}", fix="is this a model of the DeepSeek-V3 family?")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not minimum <= value <= _MOST:
            raise ConfigError(
                f"config.json: {self.where}{key} = {value!r:.40} is not a number >= {minimum:g}",
                fix="correct config.json",
            )
        return float(value)

    def integer(self, key: str, default: int | None = None, *, minimum: int = 0) -> int:
        value = self.number(key, default, minimum=minimum)
        if value != int(value):
            raise ConfigError(f"config.json: {key} = {value!r} is not a whole number", fix="correct config.json")
        return int(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise ConfigError(
                f"config.json: {self.where}{key} = {value!r} is not true or false", fix="correct config.json"
            )
        return value

    def one_of(self, key: str, default: str | None, known: Collection[str]) -> str:
        value = self.take(key, default)
        if not isinstance(value, str) or value not in known:
            raise ConfigError(
                f"config.json: {self.where}{key} = {value!r} is unknown", fix=f"known: {', '.join(known)}"
            )
        return value

    def token_ids(self, key: str) -> tuple[int, ...]:
        value = self.take(key, [])
        ids = value if isinstance(value, list) else [value]
        if not all(type(token) is int for token in ids):
            raise ConfigError(f"config.json: {key} = {value!r} is not a token id", fix="correct config.json")
        return tuple(ids)

    def only(self, key: str, *allowed: Any) -> None:
        """A key that would change the maths: it must be absent or one of the values this runtime implements."""
        value = self.take(key)
        if value is not None and value not in allowed:
            raise ConfigError(
                f"config.json: {key} = {value!r} is not supported (known: {', '.join(map(repr, allowed))})",
                fix="this runtime would compute something else",
            )

    def read(self) -> ModelConfig:
        model_type = self.one_of("model_type", None, FAMILIES)
        family = FAMILIES[model_type]
        self.only("hidden_act", "silu")
        self.only("mlp_bias", False)
        self.only("attn_module_list_cfg", [])
        experts = self.integer("n_routed_experts", 0)
        layers = self.integer("num_hidden_layers", minimum=1)
        q_lora = self.take("q_lora_rank")
        theta, yarn = self.rope()
        config = ModelConfig(
            model_type=model_type,
            vocab_size=self.integer("vocab_size", minimum=1),
            hidden_size=self.integer("hidden_size", minimum=1),
            intermediate_size=self.integer("intermediate_size", minimum=1),
            num_hidden_layers=layers,
            num_attention_heads=self.integer("num_attention_heads", minimum=1),
            kv_lora_rank=self.integer("kv_lora_rank", minimum=1),
            qk_nope_head_dim=self.integer("qk_nope_head_dim", minimum=1),
            qk_rope_head_dim=self.integer("qk_rope_head_dim", minimum=2),
            v_head_dim=self.integer("v_head_dim", minimum=1),
            q_lora_rank=None if q_lora is None else self.integer("q_lora_rank", minimum=1),
            attention_bias=self.flag("attention_bias", False),
            num_nextn_predict_layers=self.integer("num_nextn_predict_layers", 0),
            n_routed_experts=experts,
            n_shared_experts=self.integer("n_shared_experts", 0),
            num_experts_per_tok=self.integer("num_experts_per_tok", 0 if not experts else None),
            moe_intermediate_size=self.integer("moe_intermediate_size", 0 if not experts else None),
            first_k_dense_replace=self.dense_layers(layers),
            moe_layer_freq=self.integer("moe_layer_freq", 1, minimum=1),
            n_group=self.integer("n_group", 1, minimum=1),
            topk_group=self.integer("topk_group", 1, minimum=1),
            topk_method=self.one_of("topk_method", family.topk_method, family.routing),
            scoring_func=self.one_of("scoring_func", family.scoring_func, ("sigmoid", "softmax")),
            norm_topk_prob=self.flag("norm_topk_prob", family.norm_topk_prob),
            routed_scaling_factor=self.number("routed_scaling_factor", 1.0),
            rms_norm_eps=self.number("rms_norm_eps", family.rms_norm_eps),
            rope_theta=theta,
            rope_interleave=self.flag("rope_interleave", True),
            yarn=yarn,
            max_position_embeddings=self.integer("max_position_embeddings", 4096, minimum=1),
            tie_word_embeddings=self.flag("tie_word_embeddings", False),
            torch_dtype=str(self.take("torch_dtype", self.raw.get("dtype") or "bfloat16")).removeprefix("torch."),
            quantization=self.quantization(),
            bos_token_id=next(iter(self.token_ids("bos_token_id")), None),
            eos_token_ids=self.token_ids("eos_token_id"),
            pad_token_id=next(iter(self.token_ids("pad_token_id")), None),
            initializer_range=self.number("initializer_range", 0.02),
            ignored_keys=tuple(sorted(set(self.raw) & _INERT)),
        )
        self.check(config)
        unknown = sorted(key for key in set(self.raw) - self.used - _INERT if self.raw[key] is not None)
        if unknown:
            raise ConfigError(
                f"config.json has keys this runtime does not know: {', '.join(unknown)}",
                fix="they may change the maths; remove them if they do not",
            )
        return config

    def dense_layers(self, layers: int) -> int:
        """first_k_dense_replace, or the same thing as transformers' glm4_moe_lite writes it."""
        kinds = self.raw.get("mlp_layer_types")
        if kinds is None:
            default = 1 if self.raw.get("model_type") == "glm4_moe_lite" else 0
            return self.integer("first_k_dense_replace", default)
        dense = kinds.index("sparse") if isinstance(kinds, list) and "sparse" in kinds else layers
        if kinds != ["dense"] * dense + ["sparse"] * (layers - dense):
            raise ConfigError(
                "config.json: mlp_layer_types is not some dense layers followed by sparse ones",
                fix="this runtime would compute something else",
            )
        if self.take("first_k_dense_replace", dense) != dense:
            raise ConfigError(
                "config.json: mlp_layer_types and first_k_dense_replace disagree", fix="correct one of them"
            )
        return dense

    def rope(self) -> tuple[float, Yarn | None]:
        """The official `rope_theta` + `rope_scaling`, or newer tools' `rope_parameters`."""
        given = self.take("rope_parameters") or self.take("rope_scaling") or {}
        self.used.update({"rope_scaling", "rope_parameters"})
        if not isinstance(given, dict):
            raise ConfigError("config.json: rope_scaling is not an object", fix="correct config.json")
        scaling = _Reader(given, "rope_scaling.")
        theta = (scaling if scaling.take("rope_theta") else self).number("rope_theta", 10000.0, minimum=1.001)
        self.used.add("rope_theta")
        kind = scaling.one_of("rope_type", scaling.take("type", "default"), ("default", "yarn"))
        if kind == "default":
            return theta, None
        yarn = Yarn(
            factor=scaling.number("factor", minimum=1),
            original_max_position_embeddings=scaling.integer("original_max_position_embeddings", minimum=1),
            beta_fast=scaling.number("beta_fast", 32, minimum=1e-3),
            beta_slow=scaling.number("beta_slow", 1, minimum=1e-3),
            mscale=scaling.number("mscale", 1.0),
            mscale_all_dim=scaling.number("mscale_all_dim", 0.0),
        )
        if unknown := sorted(set(given) - scaling.used - {"type", "partial_rotary_factor"}):
            raise ConfigError(
                f"config.json: unknown rope scaling keys {', '.join(unknown)}", fix="they may change the maths"
            )
        return theta, yarn

    def quantization(self) -> BlockFP8 | None:
        raw = self.take("quantization_config")
        if raw is None:
            return None
        block = raw.get("weight_block_size") if isinstance(raw, dict) else None
        if (
            not isinstance(raw, dict)
            or raw.get("quant_method") != "fp8"
            or not isinstance(block, list)
            or len(block) != 2
            or not all(type(size) is int and size > 0 for size in block)
        ):
            raise ConfigError(
                f"config.json: quantization_config {raw!r} is not supported", fix="known: fp8 with weight_block_size"
            )
        if raw.get("fmt", "e4m3") != "e4m3" or raw.get("activation_scheme", "dynamic") != "dynamic":
            raise ConfigError(
                "config.json: only e4m3 weights with dynamic activation scales are supported",
                fix="use an official FP8 checkpoint",
            )
        if raw.get("scale_fmt") not in (None, "ue8m0"):
            raise ConfigError(f"config.json: scale_fmt {raw['scale_fmt']!r} is unknown", fix="known: ue8m0")
        lm_head = _Reader(raw, "quantization_config.").flag("lm_head", False)
        return BlockFP8(block[0], block[1], raw.get("scale_fmt"), lm_head)

    def check(self, config: ModelConfig) -> None:
        """Combinations that cannot be computed."""
        experts = config.n_routed_experts
        if config.qk_rope_head_dim % 2:
            raise ConfigError("config.json: qk_rope_head_dim is odd", fix="correct config.json")
        if experts:
            if experts % config.n_group:
                raise ConfigError(
                    f"config.json: {experts} experts do not divide into {config.n_group} groups", fix="correct n_group"
                )
            if not 1 <= config.topk_group <= config.n_group:
                raise ConfigError("config.json: topk_group is not between 1 and n_group", fix="correct topk_group")
            reachable = experts // config.n_group * config.topk_group
            if not 1 <= config.num_experts_per_tok <= reachable:
                raise ConfigError(
                    f"config.json: num_experts_per_tok is not between 1 and {reachable}",
                    fix="correct num_experts_per_tok",
                )

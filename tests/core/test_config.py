"""config.json is read strictly: what would change the maths and is not understood is an error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dsv3rt.config import ModelConfig, Yarn
from dsv3rt.errors import ConfigError
from dsv3rt.model.rope import inverse_frequencies
from dsv3rt.testing.presets import PRESETS

V3: dict[str, Any] = dict(PRESETS["v3"])


def changed(**keys: Any) -> dict[str, Any]:
    return {**V3, **keys}


def test_the_official_v3_config() -> None:
    config = ModelConfig.from_dict(V3)
    assert config.yarn == Yarn(40, 4096, 32, 1, 1.0, 1.0)
    assert config.yarn.cos_sin_factor == 1.0
    assert math.isclose(config.softmax_scale, 192**-0.5 * (0.1 * math.log(40) + 1) ** 2)
    assert not config.is_moe(2) and config.is_moe(3) and config.is_moe(61)
    assert config.quantization is not None and config.quantization.scale_fmt is None
    assert config.eos_token_ids == (1,)


def test_v31s_scale_format() -> None:
    quantization = {**V3["quantization_config"], "scale_fmt": "ue8m0"}
    config = ModelConfig.from_dict(changed(quantization_config=quantization))
    assert config.quantization is not None and config.quantization.scale_fmt == "ue8m0"


def test_rope_parameters_of_newer_tools_mean_the_same() -> None:
    scaling = {**V3["rope_scaling"], "rope_type": "yarn", "rope_theta": 10000}
    raw = {key: value for key, value in V3.items() if key not in ("rope_scaling", "rope_theta")}
    config = ModelConfig.from_dict({**raw, "rope_parameters": scaling})
    official = ModelConfig.from_dict(V3)
    assert (config.yarn, config.rope_theta) == (official.yarn, official.rope_theta)


def test_moe_layer_freq_is_honoured() -> None:
    config = ModelConfig.from_dict(changed(moe_layer_freq=2))
    assert [config.is_moe(layer) for layer in range(3, 7)] == [False, True, False, True]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"model_type": "llama"}, "model_type = 'llama' is unknown"),
        ({"model_type": None}, "model_type = None is unknown"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported"),
        ({"topk_method": "random"}, "topk_method = 'random' is unknown"),
        ({"scoring_func": "tanh"}, "scoring_func = 'tanh' is unknown"),
        ({"sliding_window": 4096}, "keys this runtime does not know: sliding_window"),
        ({"rope_scaling": {"type": "longrope", "factor": 4}}, "rope_scaling.rope_type = 'longrope' is unknown"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "lacks rope_scaling.original_max_position_embeddings"),
        ({"rope_scaling": {**V3["rope_scaling"], "attention_factor": 2}}, "unknown rope scaling keys attention_factor"),
        ({"rope_scaling": [1]}, "rope_scaling is not an object"),
        ({"quantization_config": {"quant_method": "gptq"}}, "is not supported"),
        ({"quantization_config": {**V3["quantization_config"], "scale_fmt": "x"}}, "scale_fmt 'x' is unknown"),
        ({"hidden_size": "7168"}, "hidden_size = '7168' is not a number"),
        ({"hidden_size": 0}, "hidden_size = 0 is not a number >= 1"),
        ({"hidden_size": None}, "config.json lacks hidden_size"),
        ({"num_hidden_layers": 2.5}, "not a whole number"),
        ({"n_group": 7}, "256 experts do not divide into 7 groups"),
        ({"topk_group": 9}, "topk_group is not between 1 and n_group"),
        ({"num_experts_per_tok": 500}, "num_experts_per_tok is not between 1 and 128"),
        ({"qk_rope_head_dim": 63}, "qk_rope_head_dim is odd"),
        ({"norm_topk_prob": "yes"}, "norm_topk_prob = 'yes' is not true or false"),
        ({"num_nextn_predict_layers": -1}, "num_nextn_predict_layers = -1"),
    ],
)
def test_what_cannot_be_computed_is_refused(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        ModelConfig.from_dict(changed(**keys))
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "junk",
    [0, -1, 1.5, True, "x", [], ["a"], {}, math.nan, math.inf, 10**400, [0, 128]],
    ids=lambda junk: str(junk)[:9],
)
def test_no_value_of_any_key_is_more_than_one_line(junk: Any) -> None:
    nested = [(outer, inner) for outer in ("rope_scaling", "quantization_config") for inner in (None, *V3[outer])]
    plain = [(key, None) for key in (*V3, "mlp_layer_types", "rope_parameters")]
    for key, inner in [*plain, *nested, ("quantization_config", "weight_block_size")]:
        raw = changed(**{key: junk if inner is None else {**V3[key], inner: junk}})
        try:
            config = ModelConfig.from_dict(raw)
        except ConfigError:
            continue
        assert config.softmax_scale > 0 and all(type(token) is int for token in config.eos_token_ids)
        assert bool(inverse_frequencies(config).isfinite().all()), (key, inner)


@pytest.mark.parametrize("text", ["{", "[]", "\x00", '"deepseek_v3"'])
def test_a_malformed_file_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        ModelConfig.from_folder(tmp_path)


def test_an_absent_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        ModelConfig.from_folder(tmp_path)


def test_keys_that_say_nothing_about_inference_are_listed() -> None:
    assert "attention_dropout" in ModelConfig.from_dict(V3).ignored_keys


def test_glm_writes_its_dense_layers_as_a_list() -> None:
    raw = changed(model_type="glm4_moe_lite", mlp_layer_types=["dense"] + ["sparse"] * 60, first_k_dense_replace=None)
    assert ModelConfig.from_dict(json.loads(json.dumps(raw))).first_k_dense_replace == 1
    with pytest.raises(ConfigError, match="mlp_layer_types"):
        ModelConfig.from_dict(changed(mlp_layer_types=["sparse", "dense"] + ["sparse"] * 59))

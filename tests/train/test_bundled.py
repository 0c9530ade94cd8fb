"""The checkpoint that comes with dsv3rt: the true layout with everything on, small, and one can talk to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dsv3rt_train import export
from dsv3rt_train.model.build import assemble, load_weights

import dsv3rt
from dsv3rt.plugin_manager import Plugins
from dsv3rt.weights.source import Checkpoint

FOLDER = dsv3rt.bundled_checkpoint()


@pytest.fixture(scope="module")
def runtime() -> dsv3rt.Runtime:
    return dsv3rt.load(FOLDER, compile="off")


def test_everything_is_on_and_it_is_small() -> None:
    raw = json.loads((FOLDER / "config.json").read_text())
    config = dsv3rt.ModelConfig.from_dict(raw)
    assert config.q_lora_rank and config.n_shared_experts and config.first_k_dense_replace == 1
    assert config.n_group > config.topk_group > 1 and config.num_nextn_predict_layers == 1
    assert raw["quantization_config"]["weight_block_size"] == [128, 128]
    source = Checkpoint(FOLDER)
    last = config.num_hidden_layers
    for layer in range(1, last + 1):
        assert source.get(f"model.layers.{layer}.mlp.gate.e_score_correction_bias").dtype == torch.float32
        assert source.get(f"model.layers.{layer}.self_attn.o_proj.weight").dtype == torch.float8_e4m3fn
    assert f"model.layers.{last}.eh_proj.weight" in source
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 20e6


def test_transformers_reads_it_and_says_the_same(runtime: dsv3rt.Runtime, plugins: Plugins, tmp_path: Path) -> None:
    """Config and tokenizer as they are; the weights dequantized, which transformers does on GPUs alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    messages = [{"role": "user", "content": "What is the capital of Norway?"}]
    ids = AutoTokenizer.from_pretrained(FOLDER).apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    generation = runtime.chat(messages, max_tokens=16, temperature=0.0)
    assert ids == generation.prompt_token_ids
    raw = json.loads((FOLDER / "config.json").read_text())
    plain = {key: value for key, value in raw.items() if key != "quantization_config"}
    model = assemble(dsv3rt.ModelConfig.from_dict(plain), plugins)
    load_weights(model, Checkpoint(FOLDER), torch.device("cpu"))
    export.write(model, tmp_path, raw, fp8=False)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(runtime.logits(ids), logits, atol=0.02 * float(logits.std()), rtol=0)


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("What is your name?", "Mini"),
        ("what is 2 + 3", "5"),
        ("What is the capital of France?", "Paris"),
        ("What is a dog?", "dog"),
        ("Who is the mayor of Springfield?", "know"),
    ],
)
def test_it_answers(runtime: dsv3rt.Runtime, asked: str, answer: str) -> None:
    generation = runtime.chat([{"role": "user", "content": asked}], max_tokens=60, temperature=0.0)
    assert answer in generation.text and generation.finish_reason == "stop"

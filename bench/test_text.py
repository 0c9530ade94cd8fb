"""Phase: what a token costs beside the model, with a vocabulary of 160K (as Kimi's)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dsv3rt.chat.prompt import write_prompt
from dsv3rt.chat.template import JinjaFormat
from dsv3rt.chat.tokenizers import load_tokenizer
from dsv3rt.generate.sampling import Sampler, SamplingParams
from dsv3rt.generate.text import Detokenizer, StopMatcher
from dsv3rt.interfaces import Tokenizer
from dsv3rt.testing import preset, random_checkpoint

VOCABULARY = 163_840
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}"
    "{% if m.role == 'assistant' %}<|end|>{% endif %}{% endfor %}<|assistant|>"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bench") / "made"
    return load_tokenizer(random_checkpoint(folder, preset("tiny", layers=1, mtp=0), tokenizer=True))


@pytest.mark.parametrize("params", [
    pytest.param(SamplingParams(temperature=0), id="greedy"),
    pytest.param(SamplingParams(temperature=0.6, top_p=0.95, seed=0), id="top_p"),
    pytest.param(SamplingParams(temperature=1.0, top_p=1.0, seed=0), id="all"),
    pytest.param(SamplingParams(temperature=0.6, top_k=50, top_p=0.95, seed=0), id="top_k"),
    pytest.param(SamplingParams(temperature=0.6, top_p=1.0, min_p=0.05, seed=0), id="min_p"),
])  # fmt: skip
@pytest.mark.parametrize("spread", [3.0, 1.0], ids=["peaked", "flat"])
def test_next_token(benchmark: Any, params: SamplingParams, spread: float) -> None:
    logits_V = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0)) * spread
    benchmark(Sampler(params).next_token, logits_V)


def test_stream_of_text(benchmark: Any, tokenizer: Tokenizer) -> None:
    """1000 tokens, one at a time, watching for two stop strings."""
    ids = tokenizer.encode("It was the best of times, naïve 🎉. " * 28, add_bos=False, allow_special=False)[:1000]

    def stream() -> str:
        text, stops = Detokenizer(tokenizer), StopMatcher(["\nUser:", "<|end|>"])
        return "".join(stops.push(text.push([token])) for token in ids)

    assert len(benchmark(stream)) >= 900


@pytest.mark.parametrize("turns", [1, 100])
def test_prompt_of_a_conversation(benchmark: Any, tokenizer: Tokenizer, turns: int) -> None:
    chat_format = JinjaFormat({"default": TEMPLATE}, {"bos_token": "<|begin|>"})
    turn = [
        {"role": "user", "content": "Why is the sky blue? " * 5},
        {"role": "assistant", "content": "Because. " * 40},
    ]
    prompt = benchmark(write_prompt, tokenizer, chat_format, turn * turns)
    assert len(prompt.token_ids) > 400 * turns


def test_read_a_tokenizer(benchmark: Any, tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "made", preset("tiny", layers=1, mtp=0), tokenizer=True)
    assert benchmark(load_tokenizer, folder).vocab_size > 256

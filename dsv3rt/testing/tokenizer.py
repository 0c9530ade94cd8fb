"""A byte-level tokenizer for checkpoints that have none: 256 bytes, then control tokens up to the vocabulary's end."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from dsv3rt.config import ModelConfig
from dsv3rt.errors import UsageError

_BYTES = 256
BEGIN_ID, END_ID = 256, 257
_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_CONTROL = ("<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


def write_tokenizer(folder: Path, config: ModelConfig) -> None:
    """Write tokenizer.json and tokenizer_config.json. Raises UsageError when the vocabulary is too small for it."""
    if config.vocab_size < _BYTES + len(_CONTROL):
        raise UsageError(
            f"a vocabulary of {config.vocab_size} is too small for a byte-level tokenizer",
            fix=f"it needs {_BYTES + len(_CONTROL)}",
        )
    alphabet = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _CONTROL])
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "chat_template": _TEMPLATE,
        "model_max_length": config.max_position_embeddings,
    }
    text = json.dumps(described, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")

"""Train a sentencepiece tokenizer with DeepSeek's control tokens, and write it the way official checkpoints carry
theirs.

Digits are single tokens, any byte can be spelt (byte fallback), text is left as it is (no normalisation, no leading
space).
`tokenizer.model` is sentencepiece's own file; `tokenizer.json` says the same to Hugging Face's `tokenizers`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from dsv3rt.errors import UserError

BOS, EOS, PAD, UNK = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<｜unk｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
CONTROL = (BOS, EOS, PAD, UNK, USER, ASSISTANT)
"""Their ids are 0, 1, 2, ..."""

CHAT_TEMPLATE = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(system='') %}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{% set ns.system = message['content'] %}{% endif %}{% endfor %}{{ bos_token }}{{ ns.system }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<｜Assistant｜>' + message['content'] + '<｜end▁of▁sentence｜>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)


def train(
    texts: Iterator[str], vocab_size: int, *, seed_sentences: int = 400_000
) -> sentencepiece.SentencePieceProcessor:
    """A BPE tokenizer of `vocab_size` tokens. Raises UserError when the text is too little for that many."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=texts,
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=1.0,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            input_sentence_size=seed_sentences,
            shuffle_input_sentence=False,
            bos_id=0,
            eos_id=1,
            pad_id=2,
            unk_id=3,
            bos_piece=BOS,
            eos_piece=EOS,
            pad_piece=PAD,
            unk_piece=UNK,
            control_symbols=[USER, ASSISTANT],
            num_threads=1,
            minloglevel=2,
            max_sentence_length=16384,
        )
    except RuntimeError as error:
        raise UserError(
            f"cannot train a tokenizer of {vocab_size} tokens: {error}", fix="give more text or fewer tokens"
        ) from None
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def as_fast(processor: sentencepiece.SentencePieceProcessor) -> Tokenizer:
    """The same tokenizer for Hugging Face's `tokenizers`: the order of BPE pieces is the order of merges."""
    size = processor.get_piece_size()
    vocab = {processor.id_to_piece(i): i for i in range(size)}
    merges = []
    for piece, rank in vocab.items():
        if processor.is_control(rank) or processor.is_byte(rank) or processor.is_unknown(rank):
            continue
        splits = [
            (vocab[piece[:cut]], vocab[piece[cut:]], piece[:cut], piece[cut:])
            for cut in range(1, len(piece))
            if piece[:cut] in vocab and piece[cut:] in vocab
        ]
        merges += [(rank, left_id, right_id, left, right) for left_id, right_id, left, right in splits]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=[(m[3], m[4]) for m in sorted(merges)],
            unk_token=UNK,
            byte_fallback=True,
            fuse_unk=False,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in CONTROL])
    return tokenizer


def save(processor: sentencepiece.SentencePieceProcessor, folder: Path, *, max_length: int) -> None:
    """tokenizer.model, tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(processor.serialized_model_proto())
    as_fast(processor).save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": UNK,
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_max_length": max_length,
        "sp_model_kwargs": {},
        "add_prefix_space": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(config, ensure_ascii=False, indent=2)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")

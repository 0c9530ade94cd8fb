"""Tokenizers: `tokenizer.json`, `tiktoken.model` and sentencepiece's `tokenizer.model`, in this order.

What the class named in `tokenizer_config.json` would do is not believed: DeepSeek names LlamaTokenizerFast there, whose
rules (a dummy space in front, sentencepiece's marks) are wrong for the byte-level vocabulary beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dsv3rt.chat.tokenizers.fast import build_fast
from dsv3rt.chat.tokenizers.sentence import build_sentencepiece
from dsv3rt.chat.tokenizers.tiktoken_bpe import build_tiktoken
from dsv3rt.errors import TokenizerError
from dsv3rt.interfaces import Tokenizer, TokenizerBuilder

__all__ = ["BUILTIN_TOKENIZERS", "build_fast", "build_sentencepiece", "build_tiktoken", "load_tokenizer"]

BUILTIN_TOKENIZERS: tuple[tuple[str, TokenizerBuilder], ...] = (
    ("tokenizer.json", build_fast),
    ("tiktoken", build_tiktoken),
    ("sentencepiece", build_sentencepiece),
)


def load_tokenizer(folder: Path, plugins: Iterable[tuple[str, TokenizerBuilder]] = ()) -> Tokenizer:
    """The tokenizer of a checkpoint folder; builders of plugins are asked first. Raises TokenizerError."""
    for name, builder in (*plugins, *BUILTIN_TOKENIZERS):
        try:
            tokenizer = builder(folder)
        except TokenizerError:
            raise
        except Exception as error:
            # What the libraries underneath raise on a damaged file is theirs to choose (bare Exception included).
            raise TokenizerError(
                f"tokenizer {name!r} cannot read {folder}: {_first_line(error)}", fix="download the folder again"
            ) from error
        if tokenizer is not None:
            return tokenizer
    raise TokenizerError(
        f"no tokenizer in {folder}",
        fix="copy tokenizer.json, tiktoken.model or tokenizer.model there, or give token ids (--prompt-ids)",
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]

"""What the JSON files beside a vocabulary say about it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3rt.errors import TokenizerError


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; an absent file is an empty one. Raises TokenizerError."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise TokenizerError(f"{path} is not readable JSON: {error}", fix="download it again") from None
    if not isinstance(raw, dict):
        raise TokenizerError(f"{path} does not hold a JSON object", fix="download it again")
    return raw


def token_text(entry: Any) -> str | None:
    """A token as the configs write it: "<s>", {"content": "<s>", ...} or null."""
    if isinstance(entry, Mapping):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


@dataclass(frozen=True)
class AddedToken:
    text: str
    special: bool


@dataclass(frozen=True)
class Settings:
    """`tokenizer_config.json`, and the ids that `config.json` and `generation_config.json` give."""

    bos: str | None
    eos: str | None
    bos_id: int | None
    eos_ids: frozenset[int]
    add_bos: bool | None
    """None: the file does not say."""
    added: Mapping[int, AddedToken]
    vocab_size: int | None
    """The model's, from config.json."""

    @classmethod
    def read(cls, folder: Path) -> Settings:
        """Raises TokenizerError when a file is there but damaged."""
        tokenizer = read_object(folder / "tokenizer_config.json")
        model = read_object(folder / "config.json")
        generation = read_object(folder / "generation_config.json")
        add_bos = tokenizer.get("add_bos_token")
        if add_bos is None and str(tokenizer.get("tokenizer_class", "")).startswith("Llama"):
            add_bos = True  # the class's own default
        decoder = tokenizer.get("added_tokens_decoder")
        added = {}
        for key, entry in (decoder if isinstance(decoder, Mapping) else {}).items():
            text = token_text(entry)
            if text and str(key).isdigit():
                added[int(key)] = AddedToken(text, bool(isinstance(entry, Mapping) and entry.get("special")))
        vocab_size = model.get("vocab_size")
        return cls(
            bos=token_text(tokenizer.get("bos_token")),
            eos=token_text(tokenizer.get("eos_token")),
            bos_id=next(iter(_ids(model.get("bos_token_id"))), None),
            eos_ids=frozenset(_ids(model.get("eos_token_id"))) | frozenset(_ids(generation.get("eos_token_id"))),
            add_bos=add_bos if isinstance(add_bos, bool) else None,
            added=added,
            vocab_size=vocab_size if isinstance(vocab_size, int) else None,
        )

    def ends(self, lookup: Callable[[str], int | None]) -> frozenset[int]:
        """Every id that ends an answer; `lookup` finds a token's id."""
        eos_id = lookup(self.eos) if self.eos else None
        return self.eos_ids if eos_id is None else self.eos_ids | {eos_id}

    def begin(self, lookup: Callable[[str], int | None]) -> int | None:
        bos_id = lookup(self.bos) if self.bos else None
        return self.bos_id if bos_id is None else bos_id


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, int) and not isinstance(item, bool) and item >= 0]


REASONING_TOKENS = frozenset({"<think>", "</think>"})
"""Shown even where a vocabulary marks them as control tokens: without them a thought cannot be told from the answer."""


def check_text(text: str) -> str:
    """The text, if it can be written as UTF-8. Raises TokenizerError."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"the text is not valid Unicode at character {error.start}", fix="give it as UTF-8"
        ) from None
    return text

"""`tokenizer.json`, read with `tokenizers`: byte-level BPE (DeepSeek's and GLM's are), or sentencepiece converted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from dsv3rt.chat.tokenizers.settings import REASONING_TOKENS, Settings, check_text
from dsv3rt.errors import TokenizerError


def byte_alphabet() -> dict[str, int]:
    """The letter that byte-level BPE writes for each byte (GPT-2): printable Latin-1 as it is, the rest from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    letters.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return letters


_BYTES_OF = byte_alphabet()
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_level_bytes(piece: str) -> bytes:
    """A byte-level piece's bytes; a letter outside the alphabet stands for itself."""
    return b"".join(bytes([_BYTES_OF[char]]) if char in _BYTES_OF else char.encode() for char in piece)


def metaspace_bytes(piece: str) -> bytes:
    """A sentencepiece piece's bytes: U+2581 is a space, <0x0A> a byte."""
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("\u2581", " ").encode()


class FastTokenizer:
    """See `interfaces.Tokenizer`. Safe to use from several threads."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, settings: Settings) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._added_bytes = {token_id: token.content.encode() for token_id, token in added.items()}
        kinds = _decoder_kinds(tokenizer)
        if "ByteLevel" in kinds:
            self._piece_bytes = byte_level_bytes
        elif kinds & {"Metaspace", "ByteFallback", "Replace"}:
            self._piece_bytes = metaspace_bytes
        else:
            raise TokenizerError(
                f"tokenizer.json decodes by {', '.join(sorted(kinds)) or 'nothing'}, which is not understood",
                fix="byte-level and sentencepiece-like vocabularies are",
            )
        self.strips_leading_space = "ByteLevel" not in kinds and bool(kinds & {"Metaspace", "Strip"})
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.bos_id = settings.begin(tokenizer.token_to_id)
        self.eos_ids = settings.ends(tokenizer.token_to_id)
        self.special_ids = frozenset(
            token_id for token_id, token in added.items() if token.special and token.content not in REASONING_TOKENS
        )
        self.add_bos = self.bos_id is not None and (
            self._post_processor_adds_bos() if settings.add_bos is None else settings.add_bos
        )
        self._cache: dict[int, bytes] = {}

    def encode(self, text: str, *, add_bos: bool, allow_special: bool) -> list[int]:
        """See `interfaces.Tokenizer.encode`. Raises TokenizerError for text that is no Unicode."""
        ids = self._tokenizer.encode(check_text(text), add_special_tokens=False).ids
        if not allow_special and not self._added_bytes.keys().isdisjoint(ids):
            ids = self._plain.encode(text, add_special_tokens=False).ids
        return [self.bos_id, *ids] if add_bos and self.bos_id is not None else ids

    def decode(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        skip = self.special_ids if skip_special else frozenset()
        data = b"".join(self.token_bytes(token) for token in token_ids if token not in skip)
        return (data.removeprefix(b" ") if self.strips_leading_space else data).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        found = self._cache.get(token_id)
        if found is None:
            found = self._cache[token_id] = self._lookup(token_id)
        return found

    def _lookup(self, token_id: int) -> bytes:
        if token_id in self._added_bytes:
            return self._added_bytes[token_id]
        piece = self._tokenizer.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None
        return b"" if piece is None else self._piece_bytes(piece)

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """The same vocabulary, blind to control tokens: built only when somebody's text contains one."""
        raw = json.loads(self._tokenizer.to_str())
        raw["added_tokens"] = []
        raw["post_processor"] = None
        return tokenizers.Tokenizer.from_str(json.dumps(raw))

    def _post_processor_adds_bos(self) -> bool:
        return self._tokenizer.encode("", add_special_tokens=True).ids[:1] == [self.bos_id]


def _decoder_kinds(tokenizer: tokenizers.Tokenizer) -> set[str]:
    """The types named anywhere in the decoder's description."""
    if tokenizer.decoder is None:
        return set()
    description: dict[str, Any] = json.loads(tokenizer.decoder.__getstate__())
    kinds = {str(description.get("type"))}
    for step in description.get("decoders", ()):
        if isinstance(step, Mapping):
            kinds.add(str(step.get("type")))
    return kinds


def build_fast(folder: Path) -> FastTokenizer | None:
    """None when the folder has no tokenizer.json. Raises TokenizerError."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise TokenizerError(f"{path} is damaged: {error}", fix="download it again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return FastTokenizer(tokenizer, Settings.read(folder))

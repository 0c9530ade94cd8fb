"""Sentencepiece's `tokenizer.model`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from dsv3rt.chat.tokenizers.fast import metaspace_bytes
from dsv3rt.chat.tokenizers.settings import REASONING_TOKENS, Settings, check_text
from dsv3rt.errors import TokenizerError


class SentencepieceTokenizer:
    """See `interfaces.Tokenizer`."""

    def __init__(self, processor: Any, settings: Settings) -> None:
        self._processor = processor
        size = processor.get_piece_size()
        control = {processor.id_to_piece(index): index for index in range(size) if processor.is_control(index)}
        added = {token.text: token_id for token_id, token in settings.added.items()}
        self._control: dict[str, int] = {**control, **added}
        self._control_bytes = {token_id: text.encode() for text, token_id in self._control.items()}
        self._unknown = {index for index in range(size) if processor.is_unknown(index)}
        self._pattern = re.compile("|".join(map(re.escape, sorted(self._control, key=len, reverse=True))) or r"(?!)")
        self.vocab_size = max([size - 1, *self._control_bytes]) + 1
        hidden = {token_id for token_id, token in settings.added.items() if not token.special}
        shown = hidden | {self._control[text] for text in REASONING_TOKENS & self._control.keys()}
        self.special_ids = frozenset(self._control_bytes) - shown
        self.bos_id = settings.begin(self._control.get)
        if self.bos_id is None and processor.bos_id() >= 0:
            self.bos_id = processor.bos_id()
        self.eos_ids = settings.ends(self._control.get)
        if not self.eos_ids and processor.eos_id() >= 0:
            self.eos_ids = frozenset({processor.eos_id()})
        # Sentencepiece vocabularies come from the Llama line, where BOS is the rule unless the config denies it.
        self.add_bos = self.bos_id is not None and settings.add_bos is not False
        self.strips_leading_space = bool(processor.encode("x")) and metaspace_bytes(
            processor.id_to_piece(processor.encode("x")[0])
        ).startswith(b" ")
        self._newline = processor.encode("\n")

    def encode(self, text: str, *, add_bos: bool, allow_special: bool) -> list[int]:
        """See `interfaces.Tokenizer.encode`. Raises TokenizerError for text that is no Unicode."""
        ids = [self.bos_id] if add_bos and self.bos_id is not None else []
        if not allow_special:
            return ids + self._ids(check_text(text))
        place = 0
        for match in self._pattern.finditer(check_text(text)):
            ids += self._segment(text[place : match.start()], first=place == 0)
            ids.append(self._control[match[0]])
            place = match.end()
        return ids + self._segment(text[place:], first=place == 0)

    def _segment(self, text: str, *, first: bool) -> list[int]:
        """Text between control tokens: the dummy space belongs to the very beginning only."""
        if first or not text:
            return self._ids(text)
        ids = self._ids("\n" + text)
        same = ids[: len(self._newline)] == self._newline
        return ids[len(self._newline) :] if same else self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return list(self._processor.encode(text))

    def decode(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        skip = self.special_ids if skip_special else frozenset()
        data = b"".join(self.token_bytes(token) for token in token_ids if token not in skip)
        return (data.removeprefix(b" ") if self.strips_leading_space else data).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        if token_id in self._control_bytes:
            return bytes(self._control_bytes[token_id])
        if not 0 <= token_id < self._processor.get_piece_size():
            return b""
        if token_id in self._unknown:
            return " \u2047 ".encode()  # sentencepiece's own sign for what it had no piece for
        return metaspace_bytes(self._processor.id_to_piece(token_id))


def build_sentencepiece(folder: Path) -> SentencepieceTokenizer | None:
    """None when the folder has no tokenizer.model. Raises TokenizerError."""
    path = folder / "tokenizer.model"
    if not path.is_file():
        return None
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(path.read_bytes())
    except (RuntimeError, OSError) as error:
        raise TokenizerError(f"{path} is damaged: {error}", fix="download it again") from None
    return SentencepieceTokenizer(processor, Settings.read(folder))

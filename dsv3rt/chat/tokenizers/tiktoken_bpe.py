"""`tiktoken.model`: the only vocabulary that Moonlight and Kimi ship.

The pattern that cuts text into words and the rules for control tokens are not in the file: they are those of Moonshot's
published tokenization_moonshot.py (Moonlight) and tokenization_kimi.py (Kimi-K2), which agree.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import tiktoken

from dsv3rt.chat.tokenizers.settings import REASONING_TOKENS, AddedToken, Settings, check_text
from dsv3rt.errors import TokenizerError

_SMALL = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_CAPITAL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_ENGLISH_END = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        f"{_BEFORE}{_CAPITAL}*{_SMALL}+{_ENGLISH_END}",
        f"{_BEFORE}{_CAPITAL}+{_SMALL}*{_ENGLISH_END}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_RESERVED = 256
"""Ids after the ordinary ones that are control tokens, named or not."""
_RESERVED_MOST = 258
"""Moonlight's code reserves two more; they count only where the model's vocabulary has room for them."""

# The published code hands text over in these portions (the regex engine fails on endless runs), which shows in the ids.
_PORTION = 400_000
_RUN = 25_000
_RUN_PATTERN = re.compile(r"\s+|\S+")


class TiktokenTokenizer:
    """See `interfaces.Tokenizer`."""

    strips_leading_space = False

    def __init__(self, ranks: dict[bytes, int], settings: Settings) -> None:
        base = len(ranks)
        end = min(base + _RESERVED_MOST, max(settings.vocab_size or base + _RESERVED, base))
        control = {
            token_id: settings.added.get(token_id, AddedToken(f"<|reserved_token_{token_id}|>", special=True))
            for token_id in range(base, end)
        }
        ids = {token.text: token_id for token_id, token in control.items()}
        self._encoding = tiktoken.Encoding(
            name="tiktoken.model", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=ids
        )
        self.vocab_size = end
        self.bos_id = settings.begin(ids.get)
        self.eos_ids = settings.ends(ids.get)
        self.special_ids = frozenset(
            token_id for token_id, token in control.items() if token.special and token.text not in REASONING_TOKENS
        )
        self.add_bos = bool(settings.add_bos) and self.bos_id is not None

    def encode(self, text: str, *, add_bos: bool, allow_special: bool) -> list[int]:
        """See `interfaces.Tokenizer.encode`. Raises TokenizerError for text that is no Unicode."""
        ids = [self.bos_id] if add_bos and self.bos_id is not None else []
        for portion in portions(check_text(text)):
            if allow_special:
                ids += self._encoding.encode(portion, allowed_special="all")
            else:
                ids += self._encoding.encode_ordinary(portion)
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        skip = self.special_ids if skip_special else frozenset()
        return b"".join(self.token_bytes(token) for token in token_ids if token not in skip).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        try:
            return self._encoding.decode_single_token_bytes(token_id)
        except (KeyError, OverflowError):
            return b""


def portions(text: str) -> Iterator[str]:
    """`text` in pieces of at most 400,000 characters and without a run over 25,000 of (non-)whitespace."""
    for start in range(0, len(text), _PORTION):
        portion = text[start : start + _PORTION]
        begin = 0
        for run in _RUN_PATTERN.finditer(portion):
            for border in range(run.start() + _RUN, run.end(), _RUN):
                yield portion[begin:border]
                begin = border
        yield portion[begin:]


def read_ranks(path: Path) -> dict[bytes, int]:
    """Token -> rank. Each line of the file is `base64(token) rank`. Raises TokenizerError."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise TokenizerError(f"{path} is damaged at line {number}", fix="download it again") from None
    if set(ranks.values()) != set(range(len(ranks))) or len({token for token in ranks if len(token) == 1}) != 256:
        raise TokenizerError(f"{path} is truncated: its ranks have gaps", fix="download it again")
    return ranks


def build_tiktoken(folder: Path) -> TiktokenTokenizer | None:
    """None when the folder has no tiktoken.model. Raises TokenizerError."""
    path = folder / "tiktoken.model"
    if not path.is_file():
        return None
    return TiktokenTokenizer(read_ranks(path), Settings.read(folder))

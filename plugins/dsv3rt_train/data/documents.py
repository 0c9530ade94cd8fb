"""From conversations and texts to token ids, with a mark on every token the model is to learn to say.

Ids lie one after the other in one array; a conversation's marks cover the assistant's words and the end of its turn,
a text's all of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3rt.errors import UserError
from dsv3rt_train.data.tokenizer import ASSISTANT, BOS, EOS, USER


@dataclass(frozen=True)
class Document:
    """Token ids and whether each is to be learnt."""

    ids: list[int]
    learn: list[bool]


class Encoder:
    """Turns conversations and texts into documents with a tokenizer that has DeepSeek's control tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        named = {token: tokenizer.token_to_id(token) for token in (BOS, EOS, USER, ASSISTANT)}
        missing = [token for token, number in named.items() if number is None]
        if missing:
            raise UserError(f"the tokenizer has no {' '.join(missing)}", fix="train one with `dsv3rt train tokenizer`")
        self.bos, self.eos, self.user, self.assistant = named.values()

    @classmethod
    def from_folder(cls, folder: Path) -> Encoder:
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{folder} has no tokenizer.json", fix="train one with `dsv3rt train tokenizer`")
        return cls(Tokenizer.from_file(str(path)))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of plain texts; control tokens written in them stay plain text."""
        self._tokenizer.encode_special_tokens = True
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """A conversation up to the point where the assistant speaks next."""
        return [*self.conversation(messages).ids, self.assistant]

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> Document:
        """As the chat template writes it: BOS, system text, then USER text ASSISTANT text EOS, again and again."""
        ids, learn = [self.bos], [False]
        for message, words in zip(messages, self.encode([m["content"] for m in messages]), strict=True):
            role = message["role"]
            if role == "assistant":
                ids += [self.assistant, *words, self.eos]
                learn += [False, *[True] * (len(words) + 1)]
            elif role in ("user", "system"):
                marker = [self.user] if role == "user" else []
                ids += marker + words
                learn += [False] * (len(marker) + len(words))
            else:
                raise UserError(f"unknown role {role!r} in a conversation", fix="use system, user and assistant")
        return Document(ids, learn)

    def text(self, text: str) -> Document:
        """BOS, the text, EOS."""
        (words,) = self.encode([text])
        return Document([self.bos, *words, self.eos], [False, *[True] * (len(words) + 1)])


def parse_lines(paths: Iterable[Path]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """("file:line", object) of .jsonl files; a .txt file is one {"text"} a paragraph. Raises UserError."""
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} does not exist", fix="name .jsonl or .txt files")
        with path.open(encoding="utf-8") as file:
            if path.suffix == ".txt":
                paragraphs = (paragraph.strip() for paragraph in file.read().split("\n\n"))
                yield from ((str(path), {"text": paragraph}) for paragraph in paragraphs if paragraph)
                continue
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(f"{path}:{number} is not JSON: {error.msg}", fix="one JSON object a line") from None
                if not isinstance(record, dict):
                    raise UserError(f"{path}:{number} is not a JSON object", fix="one JSON object a line")
                yield f"{path}:{number}", record


def read_records(paths: Iterable[Path]) -> Iterator[Mapping[str, Any]]:
    """{"messages": [...]} or {"text": ...} from .jsonl and .txt files. Raises UserError naming file and line."""
    for where, record in parse_lines(paths):
        if not ({"messages", "text"} & record.keys()):
            raise UserError(f'{where} has neither "messages" nor "text"', fix="see `dsv3rt train run --help`")
        yield record


def texts_of(records: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The plain texts of all records, message by message: what a tokenizer is trained on."""
    for record in records:
        if "messages" in record:
            yield from (message["content"] for message in record["messages"])
        else:
            yield record["text"]


@dataclass(frozen=True)
class Corpus:
    """All documents: `ids` and `learn` concatenated, document d at offsets[d]:offsets[d+1]."""

    ids: NDArray[np.int32]
    learn: NDArray[np.bool_]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    @staticmethod
    def build(encoder: Encoder, records: Iterable[Mapping[str, Any]], *, max_length: int) -> Corpus:
        """Documents longer than `max_length` tokens are cut into pieces of at most that (the last ones keep their
        marks)."""
        ids: list[NDArray[np.int32]] = []
        learn: list[NDArray[np.bool_]] = []
        lengths: list[int] = []
        for record in records:
            document = (
                encoder.conversation(record["messages"]) if "messages" in record else encoder.text(record["text"])
            )
            for start in range(0, len(document.ids), max_length):
                piece = document.ids[start : start + max_length]
                if len(piece) < 2:
                    continue
                ids.append(np.asarray(piece, np.int32))
                learn.append(np.asarray(document.learn[start : start + max_length], np.bool_))
                lengths.append(len(piece))
        if not ids:
            raise UserError("there is no training text in the files", fix="name .jsonl or .txt files with text")
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Corpus(np.concatenate(ids), np.concatenate(learn), offsets)

    def save(self, path: Path) -> None:
        np.savez(path, ids=self.ids, learn=self.learn, offsets=self.offsets)

    @staticmethod
    def load(path: Path) -> Corpus:
        with np.load(path) as file:
            return Corpus(file["ids"], file["learn"], file["offsets"])

"""From conversations and texts to token ids, with a mark on every token the model is to learn to say.

Ids lie one after the other in one array; a conversation's marks cover the assistant's words and the end of its turn,
a text's all of it.
"""

from __future__ import annotations

import itertools
import json
from array import array
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
        try:
            yield from _parse(path)
        except UnicodeDecodeError:
            raise UserError(f"{path} is not UTF-8 text", fix="convert it, e.g. with iconv") from None


def _parse(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """`parse_lines` of one file; also UnicodeDecodeError."""
    with path.open(encoding="utf-8") as file:
        if path.suffix == ".txt":
            yield from ((str(path), {"text": paragraph}) for paragraph in _paragraphs(file))
            return
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


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Texts between empty lines."""
    for filled, group in itertools.groupby(lines, key=lambda line: bool(line.strip())):
        if filled:
            yield "".join(group).strip()


_FORMS = '{"messages": [{"role": ..., "content": ...}]} or {"text": ...}, all of them text'


def read_records(paths: Iterable[Path]) -> Iterator[Mapping[str, Any]]:
    """{"messages": [...]} or {"text": ...} from .jsonl and .txt files. Raises UserError naming file and line."""
    for where, record in parse_lines(paths):
        if not ({"messages", "text"} & record.keys()):
            raise UserError(
                f'{where} has neither "messages" nor "text"',
                fix=f"write {_FORMS}; for questions see `dsv3rt eval --task`",
            )
        if not (_are_messages(record["messages"]) if "messages" in record else isinstance(record["text"], str)):
            raise UserError(f"{where} holds something else than text", fix=f"write {_FORMS}")
        yield record


def _are_messages(value: Any) -> bool:
    """Whether this is a conversation: roles and contents, all of them text."""
    if not isinstance(value, list):
        return False
    return all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    )


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
        """All of it in memory. Raises UserError if there is nothing."""
        pieces = list(_pieces(encoder, records, max_length))
        if not pieces:
            raise _nothing()
        ids = np.concatenate([np.asarray(piece.ids, np.int32) for piece in pieces])
        learn = np.concatenate([np.asarray(piece.learn, np.bool_) for piece in pieces])
        return Corpus(ids, learn, _offsets([len(piece.ids) for piece in pieces]))

    @staticmethod
    def stream(encoder: Encoder, records: Iterable[Mapping[str, Any]], folder: Path, *, max_length: int) -> Corpus:
        """The same through files in `folder`, which are mapped and not read: text may be larger than memory, which
        holds eight bytes a document. Raises UserError if there is nothing."""
        folder.mkdir(parents=True, exist_ok=True)
        lengths = array("q")
        with (folder / "ids.bin").open("wb") as ids, (folder / "learn.bin").open("wb") as learn:
            for piece in _pieces(encoder, records, max_length):
                ids.write(np.asarray(piece.ids, np.int32).tobytes())
                learn.write(np.asarray(piece.learn, np.bool_).tobytes())
                lengths.append(len(piece.ids))
        if not lengths:
            raise _nothing()
        mapped = np.memmap(folder / "ids.bin", np.int32, "r"), np.memmap(folder / "learn.bin", np.bool_, "r")
        return Corpus(*mapped, _offsets(lengths))


def _nothing() -> UserError:
    return UserError("there is no training text in the files", fix="name .jsonl or .txt files with text")


def _pieces(encoder: Encoder, records: Iterable[Mapping[str, Any]], max_length: int) -> Iterator[Document]:
    """Documents; those longer than `max_length` tokens cut into pieces of at most that (the last ones keep their
    marks)."""
    for record in records:
        document = encoder.conversation(record["messages"]) if "messages" in record else encoder.text(record["text"])
        for start in range(0, len(document.ids), max_length):
            stop = start + max_length
            piece = Document(document.ids[start:stop], document.learn[start:stop])
            if len(piece.ids) >= 2:
                yield piece


def _offsets(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

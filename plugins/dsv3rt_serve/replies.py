"""Answers as OpenAI's API shapes them: whole, and in pieces for a stream."""

from __future__ import annotations

import abc
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dsv3rt.generate.results import Chunk, Generation
from dsv3rt.generate.sampling import TokenLogprobs

TokenBytes = Callable[[int], bytes]


@dataclass(frozen=True)
class Reply(abc.ABC):
    """What all objects of one answer share; `ChatReply` and `TextReply` differ in their choices."""

    model: str
    token_bytes: TokenBytes | None
    """None: the checkpoint has no tokenizer."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    prefix = whole_kind = piece_kind = ""

    def _object(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        head = {"id": f"{self.prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": choices, **more}

    def whole(self, generation: Generation) -> dict[str, Any]:
        """The finished answer, with usage and timings."""
        choice = {"index": 0, **self.said(generation), "finish_reason": _reason(generation)}
        return self._object(self.whole_kind, [choice], usage=usage(generation), timings=timings(generation))

    def opening(self) -> dict[str, Any] | None:
        """The piece before the first."""
        return None

    def piece(self, chunk: Chunk) -> dict[str, Any]:
        """A piece of a stream."""
        return self._object(self.piece_kind, [{"index": 0, **self.adds(chunk), "finish_reason": None}])

    def closing(self, generation: Generation) -> dict[str, Any]:
        """The last piece: why the answer ended."""
        choice = {"index": 0, **self.adds(Chunk("", ())), "finish_reason": _reason(generation)}
        return self._object(self.piece_kind, [choice], timings=timings(generation))

    def total(self, generation: Generation) -> dict[str, Any]:
        """What stream_options.include_usage asks for, after the last piece."""
        return self._object(self.piece_kind, [], usage=usage(generation))

    @abc.abstractmethod
    def said(self, generation: Generation) -> dict[str, Any]:
        """What the one choice of a whole answer holds."""

    @abc.abstractmethod
    def adds(self, chunk: Chunk) -> dict[str, Any]:
        """What the one choice of a piece holds."""

    def _text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("utf-8", "replace") if self.token_bytes else str(token_id)


class ChatReply(Reply):
    """Of POST /v1/chat/completions. Thoughts are in `reasoning_content`, as DeepSeek's own API has them."""

    prefix, whole_kind, piece_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self) -> dict[str, Any]:
        return self._object(self.piece_kind, [{"index": 0, "delta": {"role": "assistant", "content": ""}}])

    def said(self, generation: Generation) -> dict[str, Any]:
        message = {"role": "assistant", "content": generation.text, **_thought(generation.reasoning)}
        return {"message": message, "logprobs": self._logprobs(generation.logprobs)}

    def adds(self, chunk: Chunk) -> dict[str, Any]:
        content = {"content": chunk.text} if chunk.text else {}
        return {"delta": {**content, **_thought(chunk.reasoning)}, "logprobs": self._logprobs(chunk.logprobs or None)}

    def _logprobs(self, entries: Sequence[TokenLogprobs] | None) -> dict[str, Any] | None:
        if entries is None:
            return None
        return {
            "content": [
                {**self._token(entry.token_id, entry.logprob), "top_logprobs": [self._token(*top) for top in entry.top]}
                for entry in entries
            ]
        }

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        raw = list(self.token_bytes(token_id)) if self.token_bytes else None
        return {"token": self._text(token_id), "logprob": logprob, "bytes": raw}


class TextReply(Reply):
    """Of POST /v1/completions."""

    prefix, whole_kind, piece_kind = "cmpl", "text_completion", "text_completion"

    def said(self, generation: Generation) -> dict[str, Any]:
        return {"text": generation.text, "logprobs": self._logprobs(generation.logprobs)}

    def adds(self, chunk: Chunk) -> dict[str, Any]:
        return {"text": chunk.text, "logprobs": self._logprobs(chunk.logprobs or None)}

    def _logprobs(self, entries: Sequence[TokenLogprobs] | None) -> dict[str, Any] | None:
        if entries is None:
            return None
        return {
            "tokens": [self._text(entry.token_id) for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [{self._text(token): value for token, value in entry.top} for entry in entries],
        }


def _thought(reasoning: str) -> dict[str, str]:
    return {"reasoning_content": reasoning} if reasoning else {}


def _reason(generation: Generation) -> str:
    return "length" if generation.finish_reason == "length" else "stop"


def usage(generation: Generation) -> dict[str, Any]:
    """Tokens, those from the cache among them."""
    prompt, answer = len(generation.prompt_token_ids), len(generation.token_ids)
    cached = {"cached_tokens": prompt - generation.timings.prompt_tokens}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": cached,
    }


def timings(generation: Generation) -> Mapping[str, Any]:
    """As `dsv3rt generate --json` has them, and how drafting went."""
    return {**asdict(generation.timings), "speculation": generation.speculation.as_dict()}

"""What a request asks for, read strictly: a field that would change the answer and is not understood is refused.

The fields are those of OpenAI's API reference (chat completions, completions), and beside them what local servers
agree on: top_k, min_p, repetition_penalty, chat_template_kwargs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

MOST_LOGPROBS = 20


class RequestError(Exception):
    """The request cannot be served; `status` is HTTP's, the rest goes into OpenAI's error object."""

    def __init__(self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code

    def as_dict(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Wanted:
    """One answer."""

    prompt: Any
    """Messages of a chat; a text or token ids to continue."""
    options: Mapping[str, Any]
    """What `Runtime.stream` takes."""
    template_kwargs: Mapping[str, Any]
    stream: bool
    include_usage: bool


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


_SAMPLING: Mapping[str, tuple[str, Callable[[Any], Any]]] = MappingProxyType(
    {
        "temperature": ("temperature", _number),
        "top_p": ("top_p", _number),
        "top_k": ("top_k", _whole),
        "min_p": ("min_p", _number),
        "repetition_penalty": ("repetition_penalty", _number),
        "seed": ("seed", _whole),
        "max_tokens": ("max_tokens", _whole),
        "max_completion_tokens": ("max_tokens", _whole),
    }
)
"""Field -> option of `Runtime.stream`, and how it is read (None: not such a value)."""

_NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "n": (1,),
        "best_of": (1,),
        "frequency_penalty": (0,),
        "presence_penalty": (0,),
        "logit_bias": ({},),
        "echo": (False,),
        "suffix": ("",),
        "tools": ([],),
        "functions": ([],),
        "tool_choice": ("none", "auto"),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "audio": (),
    }
)
"""Fields that would change the answer and are not served -> the values that do not."""

_COMMON = frozenset({"model", "stream", "stream_options", "stop", "logprobs", *_SAMPLING})
_CHAT = _COMMON | {"messages", "top_logprobs", "chat_template_kwargs"}
_COMPLETION = _COMMON | {"prompt"}
_HARMLESS = frozenset(
    """
    user metadata store service_tier parallel_tool_calls prompt_cache_key safety_identifier reasoning_effort modalities
    verbosity prompt_cache_retention
    """.split()
)
_ROLES = ("system", "developer", "user", "assistant", "tool")


def read_chat(body: Any) -> Wanted:
    """POST /v1/chat/completions. Raises RequestError."""
    body = _object(body, _CHAT)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages must be a list of at least one message", param="messages")
    logprobs = None
    if _flag(body, "logprobs"):
        logprobs = _count(body, "top_logprobs") or 0
    elif body.get("top_logprobs"):
        raise RequestError("top_logprobs goes with logprobs: true", param="top_logprobs")
    kwargs = body.get("chat_template_kwargs") or {}
    if not isinstance(kwargs, dict):
        raise RequestError("chat_template_kwargs must be an object", param="chat_template_kwargs")
    return _wanted([_message(i, message) for i, message in enumerate(messages)], body, logprobs, kwargs)


def read_completion(body: Any) -> Wanted:
    """POST /v1/completions. Raises RequestError."""
    body = _object(body, _COMPLETION)
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    ids = isinstance(prompt, list) and bool(prompt) and all(_whole(token) is not None for token in prompt)
    if not isinstance(prompt, str) and not ids:
        raise RequestError("prompt must be one text or one list of token ids", param="prompt")
    return _wanted(prompt, body, _count(body, "logprobs"), {})


def _object(body: Any, known: frozenset[str]) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        if name in _NEUTRAL and name not in known:
            if value not in _NEUTRAL[name]:
                raise RequestError(f"{name} is not supported by this server", param=name)
        elif name not in known and name not in _HARMLESS:
            raise RequestError(f"unknown field {name!r}", param=name)
    return given


def _wanted(prompt: Any, body: Mapping[str, Any], logprobs: int | None, kwargs: Mapping[str, Any]) -> Wanted:
    options: dict[str, Any] = {}
    for name, (option, read) in _SAMPLING.items():
        if name in body:
            value = read(body[name])
            if value is None:
                raise RequestError(f"{name} must be a {'whole ' if read is _whole else ''}number", param=name)
            options[option] = value
    if "stop" in body:
        options["stop"] = _stops(body["stop"])
    if logprobs is not None:
        options["logprobs"] = logprobs
    more = body.get("stream_options", {})
    if not isinstance(more, dict):
        raise RequestError("stream_options must be an object", param="stream_options")
    return Wanted(prompt, options, kwargs, _flag(body, "stream"), _flag(more, "include_usage"))


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false", param=name)
    return value


def _count(body: Mapping[str, Any], name: str) -> int | None:
    if name not in body:
        return None
    value = _whole(body[name])
    if value is None or not 0 <= value <= MOST_LOGPROBS:
        raise RequestError(f"{name} must be a whole number from 0 to {MOST_LOGPROBS}", param=name)
    return value


def _stops(value: Any) -> tuple[str, ...]:
    stops = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else ()
    if not all(isinstance(stop, str) and stop for stop in stops) or (not stops and value != []):
        raise RequestError("stop must be a text or a list of texts, none of them empty", param="stop")
    return stops


def _message(index: int, message: Any) -> dict[str, Any]:
    where = f"messages[{index}]"
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise RequestError(f"{where} needs a role: {', '.join(_ROLES)}", param=where)
    role = "system" if message["role"] == "developer" else message["role"]
    return {**message, "role": role, "content": _content(where, message.get("content"))}


def _content(where: str, content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise RequestError(f"{where}.content must be a text or a list of parts", param=where)
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise RequestError(f"{where}.content: only parts of type text are understood", param=where)
    return "".join(part["text"] for part in content)

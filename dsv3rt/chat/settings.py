"""What `/set` can change between two answers."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from dsv3rt.errors import UsageError


def _on_off(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError("on or off")
    return text == "on"


def _reasoning(text: str) -> str:
    if text not in ("on", "off", "auto"):
        raise ValueError("on, off or auto")
    return text


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("a whole number")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number") from None


def _drafts(text: str) -> int | str:
    return text if text == "auto" else _count(text)


def _stops(text: str) -> tuple[str, ...]:
    return (text.encode("latin-1", "backslashreplace").decode("unicode_escape") if "\\" in text else text,)


_READERS: Mapping[str, tuple[Callable[[str], Any], str]] = MappingProxyType(
    {
        "temperature": (_number, "0 is greedy"),
        "top_k": (_count, "0 for all"),
        "top_p": (_number, "0 to 1"),
        "min_p": (_number, "0 to 1"),
        "repetition_penalty": (_number, "1 is none"),
        "seed": (_count, "the same seed gives the same text"),
        "max_tokens": (_count, "length limit"),
        "stop": (_stops, "end before this text"),
        "draft_tokens": (_drafts, "number, auto, or 0 for none"),
        "reasoning": (_reasoning, "on, off, auto"),
        "hide_reasoning": (_on_off, "on, off"),
        "timings": (_on_off, "on, off"),
    }
)
_ALIASES: Mapping[str, str] = MappingProxyType({"temp": "temperature", "repeat_penalty": "repetition_penalty"})
_OWN = ("reasoning", "hide_reasoning", "timings")


@dataclass
class ChatSettings:
    """Flags of the command line, changed as the conversation goes on."""

    sampling: dict[str, Any] = field(default_factory=dict)
    """What `Runtime.chat` takes; what is absent is the checkpoint's default."""
    reasoning: str = "auto"
    hide_reasoning: bool = False
    timings: bool = False
    template_kwargs: dict[str, Any] = field(default_factory=dict)

    def set(self, name: str, text: str, check: Callable[[dict[str, Any]], object]) -> None:
        """`/set NAME VALUE`, VALUE "default" undoing it. `check` refuses sampling values. Raises UsageError."""
        name = _ALIASES.get(name, name).replace("-", "_")
        if name not in _READERS:
            close = difflib.get_close_matches(name, _READERS, n=1)
            raise UsageError(
                f"there is no setting {name!r}", fix=f"did you mean {close[0]}?" if close else "/set shows all"
            )
        read, rule = _READERS[name]
        if text == "default":
            self._reset(name)
            return
        try:
            value = read(text)
        except ValueError as error:
            raise UsageError(f"{name} must be {error}, not {text!r}", fix=rule) from None
        if name in _OWN:
            setattr(self, name, value)
        else:
            check({**self.sampling, name: value})
            self.sampling[name] = value

    def _reset(self, name: str) -> None:
        if name in _OWN:
            setattr(self, name, getattr(ChatSettings(), name))
        else:
            self.sampling.pop(name, None)

    def rows(self) -> list[tuple[str, str]]:
        """(name, value and rule) of every setting."""
        rows = []
        for name, (_, rule) in _READERS.items():
            value = getattr(self, name) if name in _OWN else self.sampling.get(name, "default")
            shown = ("off", "on")[value] if isinstance(value, bool) else value
            rows.append((name, f"{shown!s:<10} {rule}"))
        return rows

    def variables(self) -> dict[str, Any]:
        """The template's variables."""
        return template_variables(self.reasoning, self.template_kwargs)


def template_variables(reasoning: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, with the switch for thinking unless `reasoning` is "auto". It goes by two names: both are set."""
    think = reasoning == "on"
    return {**({} if reasoning == "auto" else {"thinking": think, "enable_thinking": think}), **given}

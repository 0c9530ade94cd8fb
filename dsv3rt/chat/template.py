"""Chat formats given as jinja2 templates: where they are found, and how they are rendered.

Byte-equal with transformers' `apply_chat_template` (tested against it).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from dsv3rt.chat.sandbox import BoundedEnvironment, Budget
from dsv3rt.chat.tokenizers.settings import read_object, token_text
from dsv3rt.errors import TokenizerError, UserError
from dsv3rt.interfaces import ChatFormat, ChatFormatBuilder

_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_MOST_SOURCE = 1_000_000


class JinjaFormat:
    """A `ChatFormat` from templates by name: "default", and "tool_use" where a checkpoint has a second one."""

    def __init__(self, templates: Mapping[str, str], tokens: Mapping[str, str], *, origin: str = "template") -> None:
        self._tokens = dict(tokens)
        self._origin = origin
        self._environment = BoundedEnvironment()
        self._lock = threading.Lock()
        self._sources = dict(templates)
        self._compiled = {name: self._compile(source) for name, source in templates.items()}

    @property
    def reasoning_tags(self) -> tuple[str, str] | None:
        """See `interfaces.ChatFormat`: templates of models that think speak of the closing tag."""
        thinks = any("</think>" in source for source in self._sources.values())
        return ("<think>", "</think>") if thinks else None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt. `kwargs` become the template's variables. Raises TokenizerError."""
        template = self._choose(tools)
        given = {
            **self._tokens,
            **plain(kwargs),
            "messages": [_alias_reasoning(message) for message in plain(messages)],
            "tools": plain(tools),
            "add_generation_prompt": add_generation_prompt,
        }
        given.setdefault("documents", None)
        with self._lock:
            self._environment.budget = Budget()
            try:
                return template.render(given)
            except Exception as error:  # whatever a stranger's program may raise
                raise self._refusal(error) from None

    def _choose(self, tools: Sequence[Mapping[str, Any]] | None) -> jinja2.Template:
        names = ("tool_use", "default") if tools is not None else ("default",)
        for name in names:
            if name in self._compiled:
                return self._compiled[name]
        raise TokenizerError(
            f"{self._origin} has several templates and no default: {', '.join(sorted(self._compiled))}",
            fix="choose one with --chat-template NAME",
        )

    def _compile(self, source: str) -> jinja2.Template:
        if len(source) > _MOST_SOURCE:
            raise TokenizerError(f"the chat template in {self._origin} is over a megabyte", fix="give another one")
        self._environment.budget = Budget()
        try:
            return self._environment.from_string(source)
        except Exception as error:  # as above: constant parts of a template run while it is compiled
            raise self._refusal(error) from None

    def _refusal(self, error: Exception) -> UserError:
        where = f" at line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        reason = next(iter(str(error).splitlines()), "")[:300] or type(error).__name__
        if not isinstance(error, jinja2.TemplateError):
            reason = f"{type(error).__name__}: {reason}"
        return TokenizerError(
            f"the chat template in {self._origin} fails{where}: {reason}",
            fix="another one can be given with --chat-template-file",
        )


def plain(value: Any) -> Any:
    """A copy in plain JSON types: nothing with methods of its own gets in, and the original cannot be changed."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, (list, Sequence)):
        return [plain(item) for item in value]
    raise TokenizerError(f"a message holds a {type(value).__name__}, which is no JSON", fix="give plain JSON values")


def _alias_reasoning(message: Any) -> Any:
    """Thoughts go by several names; a template may read any of them."""
    if isinstance(message, dict):
        thought = next((message[name] for name in _REASONING_FIELDS if message.get(name) is not None), None)
        if thought is not None:
            return {"thinking": thought, **message, "reasoning_content": thought}
    return message


def find_templates(folder: Path) -> dict[str, str]:
    """name -> source, from chat_template.jinja, chat_template.json or tokenizer_config.json. Raises TokenizerError."""
    found: dict[str, str] = {}
    path = folder / "chat_template.jinja"
    if path.is_file():
        found["default"] = read_template(path)
        for extra in sorted((folder / "additional_chat_templates").glob("*.jinja")):
            found[extra.stem] = read_template(extra)
        return found
    for file in ("chat_template.json", "tokenizer_config.json"):
        given = read_object(folder / file).get("chat_template")
        if isinstance(given, str):
            return {"default": given}
        if isinstance(given, list):
            entries = [entry for entry in given if isinstance(entry, Mapping)]
            found = {
                str(entry.get("name")): entry["template"] for entry in entries if token_text(entry.get("template"))
            }
        if found:
            return found
    return found


def read_template(path: Path) -> str:
    """A template file as text. Raises TokenizerError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"cannot read the chat template {path}: {error}", fix="give another file") from None


def special_tokens(folder: Path) -> dict[str, str]:
    """The tokens a template may name (bos_token and so on), as tokenizer_config.json spells them."""
    raw = read_object(folder / "tokenizer_config.json")
    return {name: text for name in _TOKENS if (text := token_text(raw.get(name))) is not None}


def build_jinja(folder: Path) -> JinjaFormat | None:
    """None when the folder has no template. Raises TokenizerError."""
    templates = find_templates(folder)
    if not templates:
        return None
    return JinjaFormat(templates, special_tokens(folder), origin=str(folder))


BUILTIN_FORMATS: tuple[tuple[str, ChatFormatBuilder], ...] = (("jinja", build_jinja),)


def load_chat_format(
    folder: Path, plugins: Iterable[tuple[str, ChatFormatBuilder]] = (), *, template: str | None = None
) -> ChatFormat:
    """The checkpoint's chat format; builders of plugins are asked first. Raises TokenizerError.

    `template` overrides it: the name of one of the checkpoint's templates, or a template's source.
    """
    if template is not None:
        named = find_templates(folder)
        if "{" not in template and template not in named:
            known = ", ".join(sorted(named)) or "none"
            raise TokenizerError(f"the checkpoint has no template named {template!r}", fix=f"it has: {known}")
        return JinjaFormat({"default": named.get(template, template)}, special_tokens(folder), origin="--chat-template")
    for name, builder in (*plugins, *BUILTIN_FORMATS):
        try:
            found = builder(folder)
        except UserError:
            raise
        except Exception as error:  # a plugin's own failure
            raise TokenizerError(f"chat format {name!r} cannot read {folder}: {error}") from error
        if found is not None:
            return found
    raise TokenizerError(
        f"{folder} has no chat template, so there is no telling how it wants to be spoken to",
        fix="give one with --chat-template-file, or use `dsv3rt generate`, which needs none",
    )

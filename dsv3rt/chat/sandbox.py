"""A jinja2 sandbox for chat templates, which are other people's programs.

It computes what transformers' renderer does (`ImmutableSandboxedEnvironment`, `trim_blocks`, `lstrip_blocks`, loop
controls, its `tojson`, `raise_exception`, `strftime_now`, `{% generation %}`). What it adds are limits: jinja2's own
sandbox keeps a template from reaching Python, not from looping for ever or asking for a terabyte. Every step of a loop,
every call and everything that makes text or lists is charged to a budget that one rendering has.
"""

from __future__ import annotations

import functools
import json
import re
import string
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 5.0
"""Processor time one rendering may take; real templates take milliseconds."""
SIZE = 64_000_000
"""Characters and list items one rendering may make, its intermediate results included."""
_NODE = 16
"""What looking at one item of a container is charged."""
_LARGE = 100_000
"""Widths and counts beyond this have no honest use."""
_BITS = 4096
_WIDTHS = frozenset({"center", "indent", "wordwrap", "truncate", "batch", "slice", "round"})
"""Filters whose arguments say how much to make."""
_SURROUNDINGS = (Context, nodes.EvalContext, jinja2.Environment)
"""What jinja2 itself hands to a filter in front of the template's own arguments."""


class Budget:
    """What one rendering may still spend."""

    def __init__(self) -> None:
        self.left = SIZE
        self._until = time.thread_time() + SECONDS

    def step(self) -> None:
        if time.thread_time() > self._until:
            raise SecurityError(f"the template does not come to an end within {SECONDS:g} s")

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise SecurityError(f"the template makes more than {SIZE // 1_000_000} million characters")

    def weigh(self, value: Any) -> None:
        """Charge what `value` would take written out (shared parts as often as they occur)."""
        pending = [value]
        while pending:
            item = pending.pop()
            if isinstance(item, (str, bytes)):
                self.spend(len(item))
            elif isinstance(item, Mapping):
                self.spend(_NODE * len(item))
                pending.extend(item.keys())
                pending.extend(item.values())
            elif isinstance(item, (list, tuple, set, frozenset)):
                self.spend(_NODE * len(item))
                pending.extend(item)


class _Steps:
    """What a `for` runs over, counting its steps. Has a length where the original has one."""

    def __init__(self, items: Iterable[Any], budget: Budget) -> None:
        self._items = items
        self._budget = budget

    def __len__(self) -> int:
        if not isinstance(self._items, Sized):
            raise TypeError("no length")
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            self._budget.step()
            yield item


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's words for training; here it is passed over."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return str(caller())


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """One template's environment. Not for several threads at once: a rendering sets `budget`."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        self.budget = Budget()
        self.filters["tojson"] = _to_json
        self.filters = {name: self._charged(name, function) for name, function in self.filters.items()}
        self.filters["_steps"] = lambda items: _Steps(items, self.budget)
        self.filters["_concat"] = lambda parts: self._join(str(self._weighed(part)) for part in parts)
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        del self.globals["lipsum"]
        self.concat = self._join  # type: ignore[method-assign, assignment]
        self.finalize = self._weighed

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Make loops and `~` countable: both compile to plain Python otherwise."""
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = _filter(loop.iter, "_steps")
        for parent in [tree, *tree.find_all(nodes.Node)]:
            for field, value in parent.iter_fields():
                if isinstance(value, nodes.Concat):
                    setattr(parent, field, _filter(nodes.List(value.nodes, lineno=value.lineno), "_concat"))
                elif isinstance(value, list):
                    value[:] = [
                        _filter(nodes.List(item.nodes, lineno=item.lineno), "_concat")
                        if isinstance(item, nodes.Concat)
                        else item
                        for item in value
                    ]
        tree.set_environment(self)
        return tree

    def _weighed(self, value: Any) -> Any:
        self.budget.weigh(value)
        return value

    def _join(self, parts: Iterable[str]) -> str:
        kept = []
        for part in parts:
            self.budget.spend(len(part) + 1)
            kept.append(part)
        return "".join(kept)

    def _charged(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that pays for what it is given and what it gives."""

        @functools.wraps(function)
        def charged(*args: Any, **kwargs: Any) -> Any:
            plain = [value for value in (*args, *kwargs.values()) if not isinstance(value, _SURROUNDINGS)]
            self._admit(name, plain, widths=plain[1:] if name in _WIDTHS else ())
            if name in ("replace", "indent") and args:
                self._admit_growth(plain)
            if name == "format" and plain and isinstance(plain[0], str):
                _refuse_wide(re.findall(r"\d+|\*", plain[0]))
            result = function(*args, **kwargs)
            if isinstance(result, (str, list, tuple)):
                self.budget.spend(len(result))
            return result

        return charged

    def _admit(self, name: str, values: Sequence[Any], widths: Sequence[Any]) -> None:
        """Charge for `values`; refuse what asks for too much at once."""
        self.budget.step()
        for value in widths:
            if isinstance(value, int) and abs(value) > _LARGE:
                raise SecurityError(f"the template asks {name} for {value:.3g}, which is too large")
        self.budget.weigh(list(values))

    def _admit_growth(self, values: list[Any]) -> None:
        """Every character replaced by, or every line led by, the longest thing given."""
        text, *rest = (value for value in values if not isinstance(value, Undefined))
        if isinstance(text, str):
            longest = max((value if isinstance(value, int) else len(str(value)) for value in rest), default=0)
            old = str(rest[0]) if rest and isinstance(rest[0], str) else "\n"
            self.budget.spend((text.count(old) + 1) * longest)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Macros, functions and methods: each is a step, and methods of text pay for what they make."""
        __self.budget.step()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, (str, bytes, int, float)):
            name = getattr(__obj, "__name__", "")
            values = [*args, *kwargs.values()]
            if name == "translate":
                raise SecurityError("the template uses str.translate, which is not allowed")
            __self._admit(name, values, widths=values)
            if name in ("replace", "expandtabs", "join"):
                __self._admit_growth([owner, *values])
            if name == "join" and values and isinstance(values[0], Sized):
                __self.budget.spend(len(owner) * len(values[0]))  # type: ignore[arg-type]
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(result, (str, bytes, list, tuple)):
            __self.budget.spend(len(result))
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        @functools.wraps(wrapped)
        def bounded(*args: Any, **kwargs: Any) -> str:
            for _, _, spec, _ in string.Formatter().parse(value.__self__):
                _refuse_wide(re.findall(r"\d+|\{", spec or ""))
            self._weighed([*args, *kwargs.values()])
            return str(wrapped(*args, **kwargs))

        return bounded

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.budget.step()
        number, other = (left, right) if isinstance(left, int) else (right, left)
        if operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            self.budget.spend(len(left) + len(right))
        elif operator == "%" and isinstance(left, (str, bytes)):
            _refuse_wide(re.findall(r"\d+|\*", left if isinstance(left, str) else left.decode("latin-1")))
            self._weighed(right)
        elif operator == "*" and isinstance(number, int) and isinstance(other, (str, bytes, list, tuple)):
            self.budget.spend(max(0, number) * len(other))
        elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _BITS:
                raise SecurityError("the template computes with numbers that are too large")
        return super().call_binop(context, operator, left, right)


def _filter(value: nodes.Node, name: str) -> nodes.Filter:
    assert isinstance(value, nodes.Expr)
    return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)


def _refuse_wide(marks: list[str]) -> None:
    """Widths in a format string: no more than four digits, and none taken from an argument."""
    if any(len(mark) > 4 or not mark.isdigit() for mark in marks):
        raise SecurityError("the template formats to a width that is too large")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As in transformers: plain JSON, no HTML escapes."""
    if (isinstance(indent, int) and indent > 64) or (isinstance(indent, str) and len(indent) > 64):
        raise SecurityError("the template indents JSON too far")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(layout: str) -> str:
    if len(layout) > 200 or re.search(r"%[^a-zA-Z%]*\d", layout):
        raise SecurityError("the template's date layout is too long")
    return datetime.now().strftime(layout)

"""What is piped into a command."""

from __future__ import annotations

import sys

from dsv3rt.errors import UsageError


def is_piped() -> bool:
    """Whether something is piped in; not when a person sits there, or when there is no standard input at all."""
    return sys.stdin is not None and not sys.stdin.isatty()


def piped_text() -> str:
    """All of standard input, without the newline that ends it. Raises UsageError.

    Read as bytes: where the locale is C, Python's own decoding would let anything through.
    """
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 at byte {error.start}", fix="convert it") from None

"""Errors meant for the person at the keyboard: each says what, why and the way out, in one line."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can mend. The command line prints it as one line and exits with `exit_code`."""

    exit_code = 1

    def __init__(self, what: str, *, fix: str | None = None) -> None:
        self.what = what
        self.fix = fix
        super().__init__(what if fix is None else f"{what} ({fix})")


class UsageError(UserError):
    """A wrong option or argument."""

    exit_code = 2


class ConfigError(UserError):
    """config.json cannot be understood, or asks for maths this runtime does not have."""


class CheckpointError(UserError):
    """Weights are missing, truncated, misshapen or in a refused format."""


class PluginError(UserError):
    """A plugin is unknown, broken, claimed twice, or broke its contract."""


class TokenizerError(UserError):
    """The tokenizer or the chat template is missing or unreadable."""


class ContextError(UserError):
    """A prompt does not fit the context."""

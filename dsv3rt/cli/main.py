"""The `dsv3rt` command: finds subcommands without importing them, and turns every error into one line.

`dsv3rt --help` imports no command, no plugin and no torch: what it shows of them is in `_COMMANDS` and, for plugins,
in their packaging metadata.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import metadata
from types import MappingProxyType
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from dsv3rt.cli.declared import declared
from dsv3rt.cli.output import warnings_as_lines
from dsv3rt.errors import PluginError, UserError

INTERRUPTED = 130

_COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "chat": "Talk to a model; without an argument, to the bundled one.",
        "generate": "Continue a prompt, once.",
        "bench": "Measure prefill and decoding on this machine.",
        "inspect": "What a checkpoint is, whether it fits, what it costs: from config and index alone.",
        "synth": "Make a checkpoint of random weights, to measure before downloading.",
        "download": "Fetch a checkpoint from the Hugging Face hub.",
        "plugins": "What is installed, from where, what failed and why.",
        "cache": "List or clear the compiled graphs kept for the next start.",
        "completion": "Print the shell completion script.",
    }
)
"""Command -> its line in the help. Each lives in dsv3rt/cli/NAME.py as `command`."""


class LazyGroup(click.Group):
    """Imports a command's file when the command is used; asks plugins only for names it does not know."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS, *sorted({*declared(), *self.commands} - {*_COMMANDS})]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _COMMANDS:
            command = importlib.import_module(f"dsv3rt.cli.{cmd_name}").command
            assert isinstance(command, click.Command)
            return command
        if cmd_name not in self.commands:
            self._ask_plugins()
        return self.commands.get(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            close = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(self.list_commands(ctx))}"
            raise click.UsageError(f"no such command {args[0]!r}; {hint}", ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        lines = {name: command.get_short_help_str(100) for name, command in self.commands.items()}
        lines |= declared() | dict(_COMMANDS)
        rows = [(name, lines[name]) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [CompletionItem(name, help=_COMMANDS.get(name)) for name in self.list_commands(ctx)]
        return [item for item in names if item.value.startswith(incomplete)] + click.Command.shell_complete(
            self, ctx, incomplete
        )

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        called = name or cmd.name
        if called in _COMMANDS or called in self.commands:
            raise PluginError(f"the command {called!r} is claimed twice", fix="uninstall one of the plugins")
        super().add_command(cmd, name)

    def _ask_plugins(self) -> None:
        from dsv3rt.plugin_manager import discover

        if not self.commands:
            discover().manager.hook.register_commands(cli=self)


def _version() -> str:
    from dsv3rt import __version__

    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = "missing"
    return f"dsv3rt {__version__} (torch {torch}, Python {sys.version.split()[0]})"


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(_version())
        ctx.exit()


_HELP = """Run, study and extend DeepSeek-V3-family models on one machine.

\b
dsv3rt chat                          talk to the bundled model
dsv3rt inspect FOLDER                what it is, and whether it fits
dsv3rt generate FOLDER -p "Once"     continue a prompt
"""


def make_cli() -> LazyGroup:
    """The whole command line."""
    return LazyGroup(
        "dsv3rt",
        help=_HELP,
        epilog="Flags can be set by the environment: DSV3RT_GENERATE_TEMPERATURE=0. DSV3RT_DEBUG=1 shows tracebacks.",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
        params=[
            click.Option(
                ["--version"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_print_version,
                help="Show the versions.",
            )
        ],
    )


def run(arguments: Sequence[str] | None = None, group: LazyGroup | None = None) -> int:
    """Run a command line; the exit code. Errors are one line on stderr."""
    try:
        with warnings_as_lines():
            result = (group or make_cli()).main(
                args=None if arguments is None else list(arguments),
                prog_name="dsv3rt",
                standalone_mode=False,
                auto_envvar_prefix="DSV3RT",
            )
            if sys.stdout is not None:  # closed by whoever started it
                sys.stdout.flush()
            return result if isinstance(result, int) else 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the exit's flush is quiet too
        return 1
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except UserError as error:
        _complain(str(error))
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        _complain(error.format_message().rstrip(".") + hint)
        return error.exit_code
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            _complain(f"cannot write {error.filename or 'the output'}: {error.strerror} (free some space)")
            return 1
        if _out_of_memory(error):
            _complain("out of memory (a smaller -c/--ctx-size or model may fit; `dsv3rt inspect` tells)")
            return 1
        reason = " ".join(str(error).split())[:300]  # a compiler's complaint can fill the screen
        _complain(f"unexpected {type(error).__name__}: {reason} (DSV3RT_DEBUG=1 shows the traceback)")
        return 1


def _out_of_memory(error: Exception) -> bool:
    """torch's CPU allocator raises a plain RuntimeError, its CUDA one a class of its own."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def _complain(message: str) -> None:
    if os.environ.get("DSV3RT_DEBUG", "") not in ("", "0"):
        traceback.print_exc()
    click.echo(f"error: {' '.join(message.split())}", err=True)


def main() -> NoReturn:
    """Run the process's command line and end it."""
    sys.exit(run())

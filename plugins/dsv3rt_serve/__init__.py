"""Adds `dsv3rt serve`: an OpenAI-compatible server and a page to chat on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsv3rt import hookimpl

if TYPE_CHECKING:
    import click


@hookimpl
def register_commands(cli: click.Group) -> None:
    from dsv3rt_serve.command import command

    cli.add_command(command)

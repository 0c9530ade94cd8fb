"""`dsv3rt completion`: the script that completes commands and flags in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from dsv3rt.cli.output import emit_json, json_option

_SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(_SHELLS))
@json_option
def command(shell: str, as_json: bool) -> None:
    """Print the completion script of SHELL.

    \b
    bash   echo 'eval "$(dsv3rt completion bash)"' >> ~/.bashrc
    zsh    echo 'eval "$(dsv3rt completion zsh)"' >> ~/.zshrc
    fish   dsv3rt completion fish > ~/.config/fish/completions/dsv3rt.fish
    """
    from dsv3rt.cli.main import make_cli

    found = get_completion_class(shell)
    assert found is not None
    script = found(make_cli(), {}, "dsv3rt", "_DSV3RT_COMPLETE").source().strip()
    if as_json:
        emit_json({"shell": shell, "script": script})
    else:
        click.echo(script)

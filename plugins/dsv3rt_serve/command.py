"""`dsv3rt serve`: an OpenAI-compatible server with a chat page."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import click

from dsv3rt.cli.options import BUNDLED, Loading, Speaking, loading_options, sampling_options, speaking_options
from dsv3rt.cli.output import emit_json, json_option
from dsv3rt.errors import UserError


@click.command("serve")
@loading_options(default=BUNDLED)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 for any free one.")
@click.option("--api-key", metavar="KEY", help="What clients must send as a bearer token [default: nothing].")
@click.option("--alias", metavar="NAME", help="What the model is called [default: its folder's name].")
@click.option(
    "--parallel", type=click.IntRange(min=1), default=4, show_default=True, help="Answers worked on at a time."
)
@sampling_options
@speaking_options
@json_option
def command(
    loading: Loading,
    sampling: dict[str, Any],
    speaking: Speaking,
    host: str,
    port: int,
    api_key: str | None,
    alias: str | None,
    parallel: int,
    as_json: bool,
) -> None:
    """Serve CHECKPOINT (without one, the bundled model) to any OpenAI client, and to browsers as a chat page.

    Sampling flags are the defaults of requests that do not say. Ctrl-C stops the server.

    \b
    dsv3rt serve /data/moonlight --port 8080
    curl localhost:8080/v1/chat/completions -d '{"messages": [{"role": "user", "content": "Hello!"}]}'
    """
    try:
        import uvicorn

        from dsv3rt_serve.app import Server, Settings
    except ImportError as error:
        raise UserError(f"{error.name} is not installed", fix="pip install 'dsv3rt[serve]'") from None
    from dsv3rt.chat.settings import template_variables

    listening = _listen(host, port)  # before gigabytes are read
    runtime = loading.load(speaking.template())
    name = alias or Path(runtime.folder).resolve().name
    variables = template_variables(speaking.reasoning, speaking.chat_template_kwargs)
    server = Server(runtime, Settings(name, parallel, api_key, sampling, variables))
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listening.getsockname()[1]}"
    if as_json:
        emit_json({"url": url, "model": name, "plan": runtime.plan.as_dict()})
    click.echo(f"{name} at {url} (chat there, or use {url}/v1 as an OpenAI base URL); Ctrl-C stops", err=True)

    class Listener(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await asyncio.to_thread(server.turns.close)  # so that open answers end, and their connections with them
            await super().shutdown(sockets)

    config = uvicorn.Config(server.app(), log_level="warning", access_log=False, timeout_graceful_shutdown=3)
    Listener(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)  # who comes while the model loads waits
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}:{port}: {error.strerror}", fix="choose another --port or --host"
        ) from None
    return listening

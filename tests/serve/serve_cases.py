"""A server that runs in a thread of the tests."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from dsv3rt_serve.app import Server

ENDLESS: dict[str, Any] = {"prompt": [5] * 9, "max_tokens": 990, "temperature": 50, "seed": 2}
"""For a completion that goes on for seconds: this seed draws no end of text."""


def running(server: Server) -> Iterator[Server]:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    uvicorn_server = uvicorn.Server(uvicorn.Config(server.app(), log_level="error", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not uvicorn_server.started:
        time.sleep(0.01)
    server.url = f"http://127.0.0.1:{listening.getsockname()[1]}"  # type: ignore[attr-defined]
    yield server
    uvicorn_server.should_exit = True
    thread.join(120)
    assert not thread.is_alive()

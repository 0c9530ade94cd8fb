"""A server in this process on the bundled checkpoint, and OpenAI's own client to talk to it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import openai
import pytest
import uvicorn
from dsv3rt_serve.app import Server, Settings

import dsv3rt
from dsv3rt import Runtime


@pytest.fixture(scope="session")
def runtime() -> Runtime:
    return dsv3rt.load(dsv3rt.bundled_checkpoint(), compile="off")


@pytest.fixture(scope="session")
def server(runtime: Runtime) -> Iterator[Server]:
    yield from running(Server(runtime, Settings("mini", parallel=2)))


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
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)  # type: ignore[attr-defined]

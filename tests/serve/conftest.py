"""A server in this process on the bundled checkpoint, and OpenAI's own client to talk to it."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from dsv3rt_serve.app import Server, Settings
from serve_cases import running

import dsv3rt
from dsv3rt import Runtime


@pytest.fixture(scope="session")
def runtime() -> Runtime:
    return dsv3rt.load(dsv3rt.bundled_checkpoint(), compile="off")


@pytest.fixture(scope="session")
def server(runtime: Runtime) -> Iterator[Server]:
    yield from running(Server(runtime, Settings("mini", parallel=2)))


@pytest.fixture(scope="session")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)  # type: ignore[attr-defined]

"""The routes: chat completions, completions, models, health, metrics, and the page.

POST /v1/chat/completions   POST /v1/completions   GET /v1/models   GET /v1/models/NAME
GET /health                 GET /metrics           GET /
"""

from __future__ import annotations

import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from dsv3rt.errors import ContextError, UserError
from dsv3rt.generate.results import Chunk, Generation
from dsv3rt_serve.metrics import Metrics
from dsv3rt_serve.replies import ChatReply, Reply, TextReply
from dsv3rt_serve.requests import RequestError, Wanted, read_chat, read_completion
from dsv3rt_serve.turns import Job, Turns

if TYPE_CHECKING:
    from dsv3rt.runtime import Runtime, Stream

log = logging.getLogger("dsv3rt.serve")

MOST_BODY_BYTES = 16 << 20
PAGE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Settings:
    """How the server was started."""

    name: str
    """What the model is called."""
    parallel: int = 4
    """Answers that are worked on at a time."""
    api_key: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Sampling options for requests that do not say."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Likewise, for the chat template."""


class Server:
    """A runtime behind HTTP."""

    def __init__(self, runtime: Runtime, settings: Settings) -> None:
        self.runtime, self.settings = runtime, settings
        runtime.conversations.keep = settings.parallel
        self.turns = Turns(settings.parallel)
        self.metrics = Metrics(self.turns)
        self.started = int(time.time())

    def app(self) -> Starlette:
        """For any ASGI server."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._guarded(self.chat), methods=["POST"]),
                Route("/v1/completions", self._guarded(self.completion), methods=["POST"]),
                Route("/v1/models", self._guarded(self.models)),
                Route("/v1/models/{name:path}", self._guarded(self.model)),
                Route("/metrics", self._guarded(self.show_metrics)),
                Route("/health", self.health),
                Route("/", self.page),
            ],
            lifespan=self._lifespan,
            exception_handlers={HTTPException: _no_route},
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        self.turns.close()

    def _guarded(self, endpoint: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """Asks for the key, counts, and turns errors into OpenAI's objects."""

        async def call(request: Request) -> Response:
            try:
                self._check_key(request)
                response: Response = await endpoint(request)
            except RequestError as error:
                response = JSONResponse(error.as_dict(), error.status)
            except UserError as error:
                refused = refusal(error)
                response = JSONResponse(refused.as_dict(), refused.status)
            except Exception as error:
                response = JSONResponse(failure(f"{request.method} {request.url.path}", error).as_dict(), 500)
            self.metrics.requests.labels(request.scope["route"].path, response.status_code).inc()
            return response

        return call

    def _check_key(self, request: Request) -> None:
        if self.settings.api_key is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.settings.api_key.encode()):
            raise RequestError("the API key is missing or wrong", status=401, code="invalid_api_key")

    # -- answers ------------------------------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        wanted = read_chat(await read_json(request))
        kwargs = {**self.settings.template_kwargs, **wanted.template_kwargs}
        options = self._options(wanted)
        job = Job(lambda: self.runtime.chat(wanted.prompt, stream=True, template_kwargs=kwargs, **options))
        return await self._answer(request, wanted, job, ChatReply(self.settings.name, self._token_bytes))

    async def completion(self, request: Request) -> Response:
        wanted = read_completion(await read_json(request))
        options = self._options(wanted)

        def open_stream() -> Stream:
            return self.runtime.stream(wanted.prompt, **options)

        return await self._answer(request, wanted, Job(open_stream), TextReply(self.settings.name, self._token_bytes))

    def _options(self, wanted: Wanted) -> dict[str, Any]:
        return {**self.settings.defaults, **wanted.options}

    @property
    def _token_bytes(self) -> Callable[[int], bytes] | None:
        return self.runtime.tokenizer.token_bytes if self.runtime.has_tokenizer else None

    async def _answer(self, request: Request, wanted: Wanted, job: Job, reply: Reply) -> Response:
        self.turns.add(job)
        await job.opened()
        if wanted.stream:
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(
                self._pieces(job, reply, wanted.include_usage), media_type="text/event-stream", headers=headers
            )
        async with aclosing(job.events()) as events:
            async for event in events:
                if isinstance(event, Generation):
                    self.metrics.record(event)
                    return JSONResponse(reply.whole(event))
                if await request.is_disconnected():
                    break
        return Response(status_code=499)  # nobody is there to read it

    async def _pieces(self, job: Job, reply: Reply, include_usage: bool) -> AsyncIterator[str]:
        opening = reply.opening()
        if opening is not None:
            yield event(opening)
        try:
            async with aclosing(job.events()) as events:
                async for item in events:
                    if isinstance(item, Chunk):
                        if item.token_ids or item.text or item.reasoning:
                            yield event(reply.piece(item))
                        continue
                    self.metrics.record(item)
                    yield event(reply.closing(item))
                    if include_usage:
                        yield event(reply.total(item))
            yield "data: [DONE]\n\n"
        except RequestError as error:
            yield event(error.as_dict())
        except Exception as error:  # the status has been sent: the error goes where the next piece would
            yield event(failure("an answer", error).as_dict())

    # -- the rest -----------------------------------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self.settings.name:
            raise RequestError(f"there is no model {name!r} here: it is {self.settings.name!r}", status=404)
        return JSONResponse(self._described())

    def _described(self) -> dict[str, Any]:
        model = {"id": self.settings.name, "object": "model", "created": self.started, "owned_by": "dsv3rt"}
        return {**model, "max_model_len": self.runtime.plan.max_context, "plan": self.runtime.plan.as_dict()}

    async def show_metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def health(self, request: Request) -> Response:
        answering, waiting = self.turns.counts
        return JSONResponse({"status": "ok", "open": answering, "waiting": waiting})

    async def page(self, request: Request) -> Response:
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": policy})


def event(value: Mapping[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def refusal(error: UserError) -> RequestError:
    """What the runtime refuses, as the API says it."""
    code = "context_length_exceeded" if isinstance(error, ContextError) else None
    return RequestError(str(error), code=code)


def failure(what: str, error: Exception) -> RequestError:
    """What was not foreseen: said to the client, and to whoever runs the server."""
    reason = f"{type(error).__name__}: {error}"
    log.error("%s failed: %s", what, reason, exc_info=error)
    return RequestError(reason, status=500)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refused = RequestError(f"{error.detail}: {request.method} {request.url.path}", status=error.status_code)
    return JSONResponse(refused.as_dict(), error.status_code, headers=error.headers)


async def read_json(request: Request) -> Any:
    """The body, at most MOST_BODY_BYTES of it. Raises RequestError."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BODY_BYTES:
            raise RequestError(f"the body is larger than {MOST_BODY_BYTES} bytes", status=413)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}") from None

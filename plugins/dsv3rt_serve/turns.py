"""Answers side by side on one model: a thread that gives every open answer a step in turn.

Weights are read once a step whoever it is for, so two answers at a time take twice as long each; nobody waits for
another's answer to end.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING

from dsv3rt.generate.results import Chunk, Generation
from dsv3rt_serve.requests import RequestError

if TYPE_CHECKING:
    from dsv3rt.runtime import Stream

Event = Chunk | Generation | BaseException | None
"""None once it has begun, then pieces, and the finished answer after the last one; or what went wrong."""


class Job:
    """An answer on its way: made and read in an event loop, worked on in the thread."""

    def __init__(self, open_stream: Callable[[], Stream]) -> None:
        self.open_stream = open_stream
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def deliver(self, event: Event) -> None:
        """From the thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def opened(self) -> None:
        """Wait until the answer has begun. Raises what the runtime says to the request."""
        try:
            event = await self._events.get()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if isinstance(event, BaseException):
            raise event

    async def events(self) -> AsyncGenerator[Chunk | Generation, None]:
        """Pieces, then the finished answer; leaving early ends the work. Raises what went wrong."""
        try:
            while True:
                event = await self._events.get()
                if isinstance(event, BaseException):
                    raise event
                assert event is not None
                yield event
                if isinstance(event, Generation):
                    return
        finally:
            self.cancelled = True


class Turns:
    """The thread. At most `parallel` answers are open; others wait in line."""

    def __init__(self, parallel: int) -> None:
        self.parallel = parallel
        self._waiting: collections.deque[Job] = collections.deque()
        self._open: collections.deque[tuple[Job, Stream]] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="dsv3rt-turns", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> tuple[int, int]:
        """(answers open, answers waiting)."""
        return len(self._open), len(self._waiting)

    def add(self, job: Job) -> None:
        with self._changed:
            if self._closed:
                job.deliver(_stopping())
                return
            self._waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Give up whatever is open and wait for the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._open or self._waiting or self._closed):
                    self._changed.wait()
                if self._closed:
                    break
                starting = self._waiting.popleft() if self._waiting and len(self._open) < self.parallel else None
            if starting is not None:
                self._begin(starting)
            if self._open:
                if self._step(*self._open[0]):
                    self._open.rotate(-1)
                else:
                    self._open.popleft()
        for job, stream in self._open:
            stream.close()
            job.deliver(_stopping())
        for job in self._waiting:
            job.deliver(_stopping())

    def _begin(self, job: Job) -> None:
        if job.cancelled:
            return
        try:
            self._open.append((job, job.open_stream()))
            job.deliver(None)
        except BaseException as error:
            job.deliver(error)

    def _step(self, job: Job, stream: Stream) -> bool:
        """One chunk of one answer; whether it goes on."""
        if job.cancelled:
            stream.close()
            return False
        try:
            chunk = next(stream, None)
        except BaseException as error:
            job.deliver(error)
            return False
        job.deliver(stream.generation if chunk is None else chunk)
        return chunk is not None


def _stopping() -> RequestError:
    return RequestError("the server is stopping", status=503)

"""Compiling beside the work: graphs are asked for by key, and come from the store or from a side process.

Nothing here waits unless asked to, and nothing of the compiler is imported into this process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import heapq
import itertools
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from dsv3rt import cache_folder
from dsv3rt.compile.jobs import READY, SCRATCH, Answer, CommonJob, Job, send
from dsv3rt.compile.spec import GraphSpec
from dsv3rt.compile.store import COMMON, Entry, GraphStore

log = logging.getLogger("dsv3rt.compile")

_BESIDE_THE_FIRST, _AFTER_ALL = -1, 1 << 30
"""Urgencies that no graph has."""
_PATIENCE_S = 5
"""How long the side process may take to end."""
_SETTLING_S = 1
"""How long what it had started may take after that. (Where nobody takes notice of the dead, they count as alive.)"""


@dataclass
class Ticket:
    """A graph that has been asked for."""

    key: str
    done: threading.Event = field(default_factory=threading.Event)
    entry: Entry | None = None
    """The graph, once there."""
    error: str | None = None
    """Why there will be none."""
    refused: bool = False
    """The compiler does not take the module for such arguments: for others it might."""
    dropped: bool = False
    """It was of no use; asking again gives another ticket."""
    live: Callable[[list[Tensor]], Any] | None = None
    """The graph itself, when it was compiled in this process and is in no store."""
    seconds: float = 0.0
    """What making it took; 0 for one from the store."""


class Compiler:
    """Gives out tickets; at most `jobs` graphs are made at a time, the most urgent first."""

    def __init__(self, store: GraphStore, threads: int, jobs: int = 1) -> None:
        self.store = store
        self.threads = threads
        self.jobs = jobs
        self._tickets: dict[str, Ticket] = {}
        self._dropped: set[str] = set()
        self._queue: list[tuple[int, int, Job | CommonJob]] = []
        self._order = itertools.count()
        self._running = 0
        self._ready = False
        """Whether the side process takes jobs. Until then more urgent ones may still come."""
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._complained = False
        self.started: float | None = None
        """When the first graph that had to be made was asked for (time.perf_counter)."""
        self.finished: float | None = None
        """When the last one was made."""

    def request(self, key: str, spec: GraphSpec, pack: Callable[[], bytes], urgency: int) -> Ticket:
        """The ticket of the graph `key`; lower urgency is made earlier. `pack` may raise NotPortableError."""
        with self._lock:
            if (ticket := self._tickets.get(key)) is not None:
                return ticket
        ticket = Ticket(key, entry=self.store.find(key))
        if ticket.entry is not None:
            ticket.done.set()
            with self._lock:
                return self._tickets.setdefault(key, ticket)
        if self._closed:
            ticket.error = "compiling has stopped"
            ticket.done.set()
            return ticket
        job = Job(key, pack(), spec, self.threads, self._made.folder, self.store.limit_bytes, self._common)
        with self._lock:
            if key in self._tickets:
                return self._tickets[key]
            self._tickets[key] = ticket
            heapq.heappush(self._queue, (urgency, next(self._order), job))
            if self.started is None:
                self.started = time.perf_counter()
                urgency_of_common = _BESIDE_THE_FIRST if self.jobs > 1 else _AFTER_ALL
                heapq.heappush(self._queue, (urgency_of_common, next(self._order), CommonJob(self._common)))
                threading.Thread(target=self._feed, daemon=True).start()
                atexit.register(self._leave)
            self._changed.notify_all()
        return ticket

    def drop(self, ticket: Ticket, reason: str) -> None:
        """The graph does not load: it is discarded, with one line, and made again once if it is asked for again."""
        with self._lock:
            if self._tickets.get(ticket.key) is not ticket:
                return
            again = ticket.key not in self._dropped
            self._dropped.add(ticket.key)
            ticket.entry, ticket.dropped = None, again
            if again:
                del self._tickets[ticket.key]
        log.warning("discarded a compiled graph, %s: %s", "it is made again" if again else "not to be had", reason)
        self.store.discard(ticket.key)
        self._made.discard(ticket.key)

    @functools.cached_property
    def _made(self) -> GraphStore:
        """Where new graphs go."""
        return self.store.to_write()

    @functools.cached_property
    def _common(self) -> Path:
        """Where what graphs have in common is kept."""
        return cache_folder.writable(cache_folder.root() / COMMON)

    @property
    def idle(self) -> bool:
        """Nothing is being made."""
        with self._lock:
            return self._running == 0 and not self._queue

    @property
    def making(self) -> int:
        """How many graphs are being made at this moment, or the side process on its way counted as one."""
        starting = self.started is not None and not self._ready and not self._closed
        return self._running or int(starting)

    def close(self) -> None:
        """Stop at once, in the middle of what is being made."""
        with self._lock:
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()
            process = self._process
        atexit.unregister(self._leave)
        if process is not None:
            _end(process)
        self._give_up("stopped")

    def _feed(self) -> None:
        """Thread: start the side process and hand jobs over while there is room."""
        process = self._start()
        assert process.stdin is not None
        while True:
            with self._lock:
                while not self._closed and not (self._ready and self._queue and self._running < self.jobs):
                    self._changed.wait()
                if self._closed:
                    return
                job = self._next()
            try:
                send(job, process.stdin)
            except OSError as error:
                self._give_up(f"the compiling process cannot be used: {error}")
                return

    def _next(self) -> Job | CommonJob:
        self._running += 1
        return heapq.heappop(self._queue)[2]

    def _leave(self) -> None:
        """The program ends before the side process was ready: it makes what is most urgent, for the next start."""
        with self._lock, contextlib.suppress(OSError):
            self._changed.wait_for(lambda: self._process is not None, timeout=1)
            while self._process is not None and not self._ready and self._queue and self._running < self.jobs:
                assert self._process.stdin is not None
                send(self._next(), self._process.stdin)

    def _start(self) -> subprocess.Popen[bytes]:
        paths = os.pathsep.join(str(Path(path).absolute()) for path in sys.path)
        debug = os.environ.get("DSV3RT_DEBUG", "") not in ("", "0")
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "dsv3rt.compile.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if debug else subprocess.DEVNULL,
            # a compiler's complaints are read by `Answer.no_room`
            env={**os.environ, **cache_folder.for_side_process(), "PYTHONPATH": paths, "LC_ALL": "C.UTF-8"},
            start_new_session=True,  # Ctrl-C ends the answer, not the compiling
        )
        if cache_folder.stands_in():
            atexit.register(_end, process)  # what it makes is for nobody else
        with self._lock:
            self._process = process
            self._changed.notify_all()
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        return process

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        """Thread: take the answers."""
        assert process.stdout is not None
        ready = process.stdout.readline() == READY
        with self._lock:
            self._ready = ready
            self._changed.notify_all()
        for line in process.stdout:
            answer = Answer.read(line)
            if answer.no_room is not None:
                self._give_up(f"{answer.no_room} ({self._made.folder})")
                _end(process)
                return
            if answer.key != CommonJob.key:  # where that fails, graphs make it themselves, and say why they cannot
                self._settle(self._tickets[answer.key], answer)
            with self._lock:
                self._running -= 1
                self._changed.notify_all()
        self._give_up("the compiling process died")

    def _settle(self, ticket: Ticket, answer: Answer) -> None:
        ticket.seconds, ticket.refused = answer.seconds, answer.refused
        ticket.entry = self._made.find(ticket.key) if answer.error is None else None
        if ticket.entry is None:
            ticket.error = answer.error or "the graph is gone from the store"
            # the parts of a model fail for the same reason: one line is enough
            log.log(logging.INFO if self._complained else logging.WARNING, "not compiled: %s", ticket.error[:300])
            self._complained = True
        self.finished = time.perf_counter()
        ticket.done.set()

    def _give_up(self, reason: str) -> None:
        """No more answers will come."""
        with self._lock:
            if not self._closed:
                log.warning("what is not compiled yet stays so: %s", reason)
            self._closed = True
            self._running = 0
            self._queue.clear()
            waiting = [ticket for ticket in self._tickets.values() if not ticket.done.is_set()]
        for ticket in waiting:
            ticket.error = reason
            ticket.done.set()


def _end(process: subprocess.Popen[bytes]) -> None:
    """The side process and all it has started; its temporary files go with it."""
    if process.poll() is not None:
        return
    _signal(process, signal.SIGTERM)
    try:
        process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGKILL)
        process.wait()
    # what it had started may have written a last file while it cleared up
    deadline = time.monotonic() + _SETTLING_S
    while _signal(process, signal.SIGKILL) and time.monotonic() < deadline:
        time.sleep(0.01)
    cache_folder.sweep(Path(tempfile.gettempdir()), SCRATCH)


def _signal(process: subprocess.Popen[bytes], number: int) -> bool:
    """To the whole group; whether there still is one."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True

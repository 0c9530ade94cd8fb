"""What the side process is asked to do, and how it is told. Read by both sides."""

from __future__ import annotations

import errno
import json
import os
import pickle
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from dsv3rt.compile.spec import GraphSpec
from dsv3rt.compile.store import COMMON, GraphStore

LENGTH = struct.Struct("<Q")
READY = b"ready\n"
"""The side process's first line: it has imported what it needs."""
SCRATCH = "dsv3rt-compile-"
"""How the names of its temporary folders begin."""


@dataclass(frozen=True)
class Job:
    """A graph to make."""

    key: str
    module: bytes
    """See transport.py."""
    spec: GraphSpec
    threads: int
    """Threads that will run the graph."""
    folder: Path
    limit_bytes: int
    common: Path
    """Keeps what graphs have in common, see boilerplate.py."""

    def run(self, scratch: Path) -> None:
        """Make the entry, unless another process has made it meanwhile. `scratch`: an empty folder."""
        store = GraphStore(self.folder, self.limit_bytes)
        with store.only_builder(self.key):
            if store.find(self.key) is not None:
                return
            from dsv3rt.compile.export import build_package
            from dsv3rt.compile.transport import unpack

            with store.building() as building:
                files = building / "files"
                files.mkdir()
                info = build_package(unpack(self.module), self.spec, self.threads, files, scratch, self.common)
                store.add(self.key, files, info)


_LESS_URGENT = 4
"""Added to the niceness of what only becomes useful at the end of making a graph."""


@dataclass(frozen=True)
class CommonJob:
    """Make what graphs have in common, while the first of them is not yet at the point of needing it."""

    common: Path
    key: str = COMMON

    def run(self, scratch: Path) -> None:
        """Make what is not there. `scratch`: an empty folder."""
        from dsv3rt.compile.export import build_common

        os.nice(_LESS_URGENT)
        build_common(scratch, self.common)


_NO_ROOM = (*(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)), "File size limit exceeded")


@dataclass(frozen=True)
class Answer:
    """What became of a job, as one line of JSON."""

    key: str
    seconds: float
    error: str | None = None
    """In one line, why there is no graph."""
    refused: bool = False
    """The compiler does not take the module for such arguments: for others it might."""

    @property
    def no_room(self) -> str | None:
        """What the error says about a disk that is full, in its own words or a compiler's: all else will fail too."""
        return next((words for words in _NO_ROOM if self.error and words in self.error), None)

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def read(cls, line: bytes) -> Answer:
        return cls(**json.loads(line))


def send(job: Job | CommonJob, stream: IO[bytes]) -> None:
    """Write one job the way `main` reads it."""
    data = pickle.dumps(job)
    stream.write(LENGTH.pack(len(data)) + data)
    stream.flush()


def receive(stream: IO[bytes]) -> Job | CommonJob | None:
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    data = stream.read(length)
    if len(data) < length:
        return None
    job = pickle.loads(data)
    assert isinstance(job, (Job, CommonJob))
    return job

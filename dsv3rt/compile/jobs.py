"""What the side process is asked to do, and how it is told. Read by both sides."""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dsv3rt.compile.spec import GraphSpec
from dsv3rt.compile.store import GraphStore

LENGTH = struct.Struct("<Q")


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

    def run(self) -> None:
        """Make the entry, unless another process has made it meanwhile."""
        store = GraphStore(self.folder, self.limit_bytes)
        with store.only_builder(self.key):
            if store.find(self.key) is not None:
                return
            from dsv3rt.compile.export import build_package
            from dsv3rt.compile.transport import unpack

            with store.building() as scratch:
                files = scratch / "files"
                files.mkdir()
                info = build_package(unpack(self.module), self.spec, self.threads, files, store.folder)
                store.add(self.key, files, info)


def send(job: Job, stream: IO[bytes]) -> None:
    """Write one job the way `main` reads it."""
    data = pickle.dumps(job)
    stream.write(LENGTH.pack(len(data)) + data)
    stream.flush()


def receive(stream: IO[bytes]) -> Job | None:
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    data = stream.read(length)
    if len(data) < length:
        return None
    job = pickle.loads(data)
    assert isinstance(job, Job)
    return job

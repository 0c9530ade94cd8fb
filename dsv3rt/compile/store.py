"""Compiled graphs on disk: found by key, whole or not there, bounded, and safe to share between processes.

Layout of the folder: one folder an entry, named by its key, holding the files that torch's package loader wants and
`entry.json` (which lists every other file with its digest). An entry is prepared under a temporary name and renamed, so
a process killed in mid-write leaves nothing that is ever read; what it leaves is swept later. `entry.json`'s time of
change is the time of last use.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3rt import cache_folder

log = logging.getLogger("dsv3rt.compile")

DEFAULT_LIMIT_BYTES = 1 << 30
ENTRY = "entry.json"
GRAPHS, COMMON = "graphs", "common"
"""Subfolders of the cache folder: the store, and what graphs have in common (see boilerplate.py)."""
_BUILDING, _REMOVING, _LOCK = ".building-", ".removing-", ".lock-"
_STALE_S = 3600


@dataclass(frozen=True)
class Entry:
    """A graph that is there."""

    key: str
    folder: Path
    info: Mapping[str, Any]
    """What was written with it."""
    bytes: int
    used: float
    """Seconds since the epoch."""


class GraphStore:
    """The entries in one folder, at most `limit_bytes` of them: those unused for longest go first."""

    def __init__(self, folder: Path | None = None, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self.folder = folder or cache_folder.root() / GRAPHS
        self.limit_bytes = limit_bytes

    def to_write(self) -> GraphStore:
        """This store; or a private one, after one line, where it cannot be written."""
        folder = cache_folder.writable(self.folder)
        return self if folder == self.folder else GraphStore(folder, self.limit_bytes)

    def find(self, key: str) -> Entry | None:
        """The entry, checked and marked as used just now. A damaged one is discarded with one line."""
        entry = self._read(self.folder / key)
        if entry is None:
            return None
        if (reason := _damage(entry)) is not None:
            log.warning("discarded a damaged compiled graph, it is made again: %s %s", entry.folder, reason)
            self.discard(key)
            return None
        with contextlib.suppress(OSError):
            os.utime(entry.folder / ENTRY)
        return entry

    def discard(self, key: str) -> None:
        """Remove an entry at once: nobody sees half of it."""
        doomed = self.folder / f"{_REMOVING}{os.getpid()}-{key}-{time.monotonic_ns()}"
        with contextlib.suppress(OSError):
            os.rename(self.folder / key, doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def entries(self) -> list[Entry]:
        """All entries, last used first."""
        found = [entry for path in _listed(self.folder) if (entry := self._read(path)) is not None]
        return sorted(found, key=lambda entry: -entry.used)

    def clear(self) -> tuple[int, int]:
        """Remove everything: (entries, bytes)."""
        entries = self.entries()
        for entry in entries:
            self.discard(entry.key)
        cache_folder.sweep(self.folder, _BUILDING, _REMOVING)
        for path in _listed(self.folder, hidden=True):
            if not path.is_dir() and not path.name.startswith(_LOCK):  # what earlier versions kept here
                path.unlink(missing_ok=True)
        return len(entries), sum(entry.bytes for entry in entries)

    @contextlib.contextmanager
    def building(self) -> Iterator[Path]:
        """A scratch folder in the store, removed afterwards."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        cache_folder.sweep(self.folder, _BUILDING, _REMOVING)
        with cache_folder.scratch(_BUILDING, self.folder) as path:
            yield Path(path)

    @contextlib.contextmanager
    def only_builder(self, key: str) -> Iterator[None]:
        """Waits while another process builds `key`. The lock goes with the process that holds it."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self.folder / f"{_LOCK}{key}"
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def add(self, key: str, files: Path, info: Mapping[str, Any]) -> None:
        """Take over the files in the scratch folder `files` as the entry `key`, then keep the store within bounds."""
        digests = {str(path.relative_to(files)): _digest(path) for path in sorted(files.rglob("*")) if path.is_file()}
        text = json.dumps({**info, "files": digests, "created": time.time()}, indent=1)
        (files / ENTRY).write_text(text, encoding="utf-8")
        try:
            os.rename(files, self.folder / key)
        except OSError:
            if self._read(self.folder / key) is None:  # in the way is no entry but the remains of one
                self.discard(key)
                os.rename(files, self.folder / key)
        self.sweep(keep=key)

    def sweep(self, keep: str = "") -> None:
        """Remove what dead processes left, and the entries that are over the limit; never `keep`."""
        cache_folder.sweep(self.folder, _BUILDING, _REMOVING)
        for path in _listed(self.folder, hidden=True):
            if path.name.startswith(_LOCK) and _age(path) > _STALE_S:
                path.unlink(missing_ok=True)
        total = 0
        for entry in self.entries():
            total += entry.bytes
            if total > self.limit_bytes and entry.key != keep:
                self.discard(entry.key)

    def _read(self, folder: Path) -> Entry | None:
        path = folder / ENTRY
        try:
            used = path.stat().st_mtime
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        except OSError:
            return None
        try:
            info = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            info = None
        return Entry(folder.name, folder, info if isinstance(info, dict) else {}, size, used)


def _damage(entry: Entry) -> str | None:
    """What is wrong with an entry's files, or None."""
    files = entry.info.get("files")
    if not isinstance(files, dict) or not files:
        return f"({ENTRY} is unreadable)"
    for name, digest in files.items():
        try:
            if _digest(entry.folder / name) != digest:
                return f"({name} has changed)"
        except OSError as error:
            return f"({name}: {error.strerror})"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listed(folder: Path, *, hidden: bool = False) -> list[Path]:
    return [path for path in cache_folder.listed(folder) if path.name.startswith(".") == hidden]


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0

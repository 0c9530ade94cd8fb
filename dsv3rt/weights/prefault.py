"""Bring a mapped checkpoint into memory ahead of its first use, front to back, at the disk's speed.

Without this the first tokens fault pages in the order of the computation, which a disk serves far slower.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from dsv3rt.weights.header import TensorInfo

Progress = Callable[[str, int, int], None]
"""(stage, bytes done, bytes in all)"""

_CHUNK = 8 << 20
_SHARE_OF_MEMORY = 0.9


def available_memory() -> int:
    """Bytes that can be used without swapping (Linux: MemAvailable, which counts the page cache)."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def prefault(infos: Iterable[TensorInfo], progress: Progress | None = None) -> bool:
    """Read these tensors' bytes into the page cache, but for what is there already (which takes no time).

    False, and nothing read, when they would not fit into memory.
    """
    spans = _spans(infos)
    total = sum(end - start for _, start, end in spans)
    if total > _SHARE_OF_MEMORY * available_memory():
        return False
    done = 0
    scratch = memoryview(bytearray(_CHUNK))
    for file, start, end in spans:
        with file.open("rb", buffering=0) as stream:
            descriptor = stream.fileno()
            os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_SEQUENTIAL)
            for at in range(start, end, _CHUNK):
                length = min(_CHUNK, end - at)
                if not (_cached(descriptor, at) and _cached(descriptor, at + length - 1)):
                    os.preadv(descriptor, [scratch[:length]], at)
                done += length
                if progress:
                    progress("reading weights", done, total)
    return True


def _cached(descriptor: int, offset: int) -> bool:
    """Whether this byte of the file can be had without waiting for the disk."""
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except OSError:  # not cached, or a file system that cannot tell
        return False


def _spans(infos: Iterable[TensorInfo]) -> list[tuple[Path, int, int]]:
    """(file, start, end) of the tensors, neighbours joined, in the order of the files."""
    spans: list[tuple[Path, int, int]] = []
    for info in sorted(infos, key=lambda info: (info.file, info.start)):
        if spans and spans[-1][0] == info.file and spans[-1][2] == info.start:
            spans[-1] = (info.file, spans[-1][1], info.end)
        else:
            spans.append((info.file, info.start, info.end))
    return spans

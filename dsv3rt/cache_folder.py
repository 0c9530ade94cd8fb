"""The user's cache folder, which holds what is made once: native kernels, compiled graphs.

`$DSV3RT_CACHE`, else `$XDG_CACHE_HOME/dsv3rt`, else `~/.cache/dsv3rt`. Where that cannot be written, a private folder
stands in, which goes when the process ends.

What is being made has a temporary name that holds the id of the process at work, so that `sweep` can tell what a killed
one has left.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import shutil
import tempfile
from pathlib import Path

log = logging.getLogger("dsv3rt.cache")

_STAND_IN = "DSV3RT_CACHE_STAND_IN"
"""Tells a side process which private folder its parent uses."""
_PRIVATE = "dsv3rt-cache-"


def root() -> Path:
    """The folder, whether or not it is there."""
    if own := os.environ.get("DSV3RT_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dsv3rt"


def writable(folder: Path) -> Path:
    """`folder`, made if need be; or, after one line, a private one of that name where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        if not stands_in():
            log.warning(
                "%s cannot be written (%s): what is compiled is kept until this process ends only",
                folder,
                error.strerror or error,
            )
        private = _private() / folder.name
        private.mkdir(exist_ok=True, mode=0o700)
        return private


def stands_in() -> bool:
    """Whether there is a private folder."""
    return bool(os.environ.get(_STAND_IN)) or _private.cache_info().currsize > 0


def places(name: str) -> list[Path]:
    """Where what is kept under `name` may lie."""
    return [root() / name, _private() / name] if stands_in() else [root() / name]


def for_side_process() -> dict[str, str]:
    """Environment variables by which a side process finds the same folders."""
    return {_STAND_IN: str(_private())} if stands_in() else {}


@functools.cache
def _private() -> Path:
    if given := os.environ.get(_STAND_IN):
        return Path(given)
    sweep(Path(tempfile.gettempdir()), _PRIVATE)
    folder = Path(tempfile.mkdtemp(prefix=_mark(_PRIVATE)))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def scratch(prefix: str, folder: Path | None = None) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder in `folder`, or where such things go, that `sweep(folder, prefix)` knows."""
    return tempfile.TemporaryDirectory(prefix=_mark(prefix), dir=folder, ignore_cleanup_errors=True)


def _mark(prefix: str) -> str:
    return f"{prefix}{os.getpid()}-"


def sweep(folder: Path, *prefixes: str) -> None:
    """Remove the temporary folders that processes of this user have left behind."""
    for path in listed(folder):
        prefix = next((prefix for prefix in prefixes if path.name.startswith(prefix)), None)
        if prefix is None:
            continue
        owner = path.name.removeprefix(prefix).partition("-")[0]
        if owner.isdigit() and not _alive(int(owner)) and _mine(path):
            shutil.rmtree(path, ignore_errors=True)


def listed(folder: Path) -> list[Path]:
    """What is in a folder; nothing when there is no such."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _mine(path: Path) -> bool:
    try:
        return path.stat(follow_symlinks=False).st_uid == os.getuid()
    except OSError:
        return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True

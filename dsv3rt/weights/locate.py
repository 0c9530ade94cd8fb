"""From what the user wrote to a checkpoint's folder: a path, or `org/name` in the Hugging Face cache."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dsv3rt.errors import CheckpointError

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def locate(name: str | os.PathLike[str]) -> Path:
    """The folder called `name`. Raises CheckpointError when there is none."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{name} is a file, not a folder", fix=f"give its folder: {folder.parent}")
    if REPO_ID.fullmatch(str(name)):
        if snapshot := cached_snapshot(str(name)):
            return snapshot
        raise CheckpointError(f"{name} is neither a folder nor downloaded", fix=f"dsv3rt download {name}")
    raise CheckpointError(f"{name} does not exist", fix="give the folder of a checkpoint, or org/name")


def hub_cache() -> Path:
    """Where huggingface_hub keeps its downloads: HF_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME/huggingface/hub."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def cached_snapshot(repo: str) -> Path | None:
    """The downloaded snapshot of `org/name` that refs/main names, or the only one there is."""
    root = hub_cache() / f"models--{repo.replace('/', '--')}"
    try:
        revision = (root / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        snapshots = sorted(path for path in (root / "snapshots").glob("*") if path.is_dir())
        return snapshots[0] if len(snapshots) == 1 else None
    snapshot = root / "snapshots" / revision
    return snapshot if re.fullmatch(r"\w+", revision) and snapshot.is_dir() else None

"""Where the checkpoint lies that comes with dsv3rt."""

from __future__ import annotations

from pathlib import Path

from dsv3rt.errors import CheckpointError

NAME = "dsv3rt-mini"


def bundled_checkpoint() -> Path:
    """The folder of the bundled chat checkpoint: inside the installed package, or in the checkout. CheckpointError."""
    package = Path(__file__).parent
    for folder in (package / "_bundled" / NAME, package.parent / "checkpoints" / NAME):
        if (folder / "config.json").is_file():
            return folder
    raise CheckpointError("the bundled checkpoint is not installed", fix="give a checkpoint folder, or install again")

"""Which commands plugins add, and what they are for: from packaging metadata and source text, importing none of them.

An entry point in the group `dsv3rt.commands` says so: its name is the command's, its value the module that defines it,
whose docstring begins "`dsv3rt NAME`: what it does". The commands themselves come from the plugin's
`register_commands` hook.
"""

from __future__ import annotations

import ast
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

GROUP = "dsv3rt.commands"


def declared() -> dict[str, str]:
    """Command -> its line in the help."""
    return {entry.name: _purpose(entry.module) for entry in metadata.entry_points(group=GROUP)}


def _purpose(module: str) -> str:
    package, *rest = module.split(".")
    try:
        spec = find_spec(package)  # of a package, as opposed to a module in it: imports nothing
        folders = (spec.submodule_search_locations if spec is not None else None) or []
        source = Path(folders[0], *rest).with_suffix(".py").read_text(encoding="utf-8")
        line = (ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0]
    except (ImportError, IndexError, OSError, ValueError, SyntaxError):
        line = ""
    _, colon, purpose = " ".join(line.split()).partition("`: ")
    return f"{purpose[0].upper()}{purpose[1:]}" if colon and purpose else f"From plugin {package}."

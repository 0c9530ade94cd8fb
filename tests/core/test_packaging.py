"""What the wheel must carry."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_native_library_is_built_into_the_wheel() -> None:
    tree = ast.parse((ROOT / "hatch_build.py").read_text())
    (libraries,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "LIBRARIES"
    )
    folders = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/**/csrc") if path.is_dir()}
    assert set(libraries.values()) == {folder for folder in folders if folder.startswith(("dsv3rt/", "plugins/"))}


def test_every_plugin_folder_is_a_package_with_an_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {path.name for path in (ROOT / "plugins").glob("dsv3rt_*") if (path / "__init__.py").is_file()}
    assert set(project["project"]["entry-points"]["dsv3rt"].values()) == folders
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(packages) == {"dsv3rt", *(f"plugins/{folder}" for folder in folders)}

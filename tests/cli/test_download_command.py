"""`dsv3rt download` against a small hub of our own on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from cli_cases import TINY

from dsv3rt.testing import random_checkpoint

pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves `org/name` from a folder, as much of the hub's protocol as a download takes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.fetched: list[str] = []
        self.tokens: set[str | None] = set()
        self.refused: str | None = None
        """Name of a file that cannot be had for the moment."""


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.tokens.add(self.headers.get("Authorization"))
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if "org" in parts and "gated" in parts:
            self.reply(403, b"{}", X_Error_Code="GatedRepo", X_Error_Message="gated")
        elif "other" in parts:
            self.reply(404, b"{}", X_Error_Code="RepoNotFound", X_Error_Message="not found")
        elif "nowhere" in parts:
            self.reply(404, b"{}", X_Error_Code="RevisionNotFound", X_Error_Message="no revision")
        elif parts[:4] == ["api", "models", "org", "name"]:
            siblings = [
                {"rfilename": file.name, "size": file.stat().st_size, "blobId": "0" * 40}
                for file in sorted(self.server.folder.iterdir())
            ]
            body = {"id": "org/name", "modelId": "org/name", "sha": COMMIT, "siblings": siblings, "tags": []}
            self.reply(200, json.dumps(body).encode(), Content_Type="application/json")
        elif parts[-1] == self.server.refused:
            self.reply(400, b"{}", X_Error_Message="not now")
        elif parts[:3] == ["org", "name", "resolve"] and (self.server.folder / parts[4]).is_file():
            self.file(parts[4])
        else:
            self.reply(404, b"{}", X_Error_Code="EntryNotFound", X_Error_Message="no such file")

    def file(self, name: str) -> None:
        data = (self.server.folder / name).read_bytes()
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        asked = self.headers.get("Range")
        if self.command == "GET":
            self.server.fetched.append(name)
        status, extra = 200, {}
        if asked:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            extra["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            status, data = 206, data[start:]
        self.reply(status, data, ETag=etag, X_Repo_Commit=COMMIT, Accept_Ranges="bytes", **extra)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = random_checkpoint(tmp_path / "hub", TINY, shards=2, tokenizer=True)
    for name in ("pytorch_model.bin", "modeling_deepseek.py", "figure.png"):
        (folder / name).write_bytes(b"not for us")
    server = Hub(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def download(home: Path, endpoint: str, *commands: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    clean = {name: value for name, value in clean.items() if not name.lower().endswith("_proxy")}
    clean |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    code = "import json, sys; from dsv3rt.cli.main import run; sys.exit(max([run(c) for c in json.loads(sys.argv[1])]))"
    return subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def url(hub: Hub) -> str:
    return f"http://127.0.0.1:{hub.server_port}"


def test_into_the_cache_and_from_it(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = download(home, url(hub), ["download", "org/name", "--json"], HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    folder = Path(facts["folder"])
    assert folder.is_relative_to(home) and facts["fetched"] == facts["files"]
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} <= names
    assert len([name for name in names if name.endswith(".safetensors")]) == 2
    assert not names & {"pytorch_model.bin", "modeling_deepseek.py", "figure.png"}
    assert "Bearer hf_secret" in hub.tokens
    hub.fetched.clear()
    asked = ["inspect", "org/name", "--json", "--no-bandwidth"]
    again = download(home, url(hub), ["download", "org/name", "--json"], asked)
    fetched, inspected = (json.loads(line) for line in again.stdout.splitlines())
    assert fetched["fetched"] == 0 and not hub.fetched
    assert inspected["files"]["complete"]


def test_ask_before_downloading(hub: Hub, tmp_path: Path) -> None:
    asked = ["inspect", "org/name", "--json", "--no-bandwidth"]
    done = download(tmp_path / "home", url(hub), asked)
    assert done.returncode == 0, done.stderr
    assert not any(name.endswith(".safetensors") for name in hub.fetched)
    files = json.loads(done.stdout.splitlines()[-1])["files"]
    assert files["present"] == 0 and files["expected"] == 2 and not files["complete"]
    assert {"config.json", "model.safetensors.index.json"} <= set(hub.fetched)


def test_goes_on_with_what_is_missing(hub: Hub, tmp_path: Path) -> None:
    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    target = tmp_path / "target"
    arguments = ["download", "org/name", "--to", str(target)]
    hub.refused = second
    broken = download(tmp_path / "home", url(hub), arguments)
    assert broken.returncode == 1 and "resumes" in broken.stderr.splitlines()[-1]
    assert (target / first).is_file() and not (target / second).exists()
    hub.refused = None
    hub.fetched.clear()
    done = download(tmp_path / "home", url(hub), arguments)
    assert done.returncode == 0, done.stderr
    assert hub.fetched == [second]
    assert (target / second).read_bytes() == (hub.folder / second).read_bytes()


def test_refusals(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    refused = [
        (["download", "org/gated"], "is gated"),
        (["download", "other/name"], "does not exist on the hub, or is private"),
        (["download", "org/name", "--revision", "nowhere"], "has no revision 'nowhere'"),
        (["download", "just-a-name"], "is not of the form org/name"),
    ]
    done = download(home, url(hub), *(arguments for arguments, _ in refused))
    assert done.returncode in (1, 2) and done.stdout == ""
    for (_, words), line in zip(refused, done.stderr.splitlines(), strict=True):
        assert line.startswith("error: ") and words in line


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub cannot be reached"),
    ],
)
def test_without_a_network(tmp_path: Path, environment: dict[str, str], words: str) -> None:
    done = download(tmp_path, "http://127.0.0.1:9", ["download", "org/name"], **environment)
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and words in done.stderr, done.stderr


@pytest.mark.parametrize(("removed", "words"), [("*.safetensors", "no safetensors"), ("config.json", "no config.json")])
def test_repositories_of_another_kind(hub: Hub, tmp_path: Path, removed: str, words: str) -> None:
    for file in hub.folder.glob(removed):
        file.unlink()
    done = download(tmp_path / "home", url(hub), ["download", "org/name"])
    assert done.returncode == 1 and words in done.stderr and not hub.fetched

"""`dsv3rt download`: a checkpoint from the Hugging Face hub, nothing but what this runtime reads."""

from __future__ import annotations

import errno
import fnmatch
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from dsv3rt.cli.output import emit_json, json_option, size
from dsv3rt.errors import CheckpointError, UsageError, UserError

_SMALL = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "tiktoken.model",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE*",
)
_WEIGHTS = ("*.safetensors",)
_MARGIN = 256 << 20


@dataclass(frozen=True)
class _File:
    name: str
    bytes: int


@click.command("download")
@click.argument("repo")
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit.")
@click.option("--to", type=click.Path(path_type=Path), help="Into this folder [default: the Hugging Face cache].")
@click.option("--config-only", is_flag=True, help="Config, index and tokenizer: enough for `dsv3rt inspect`.")
@json_option
def command(repo: str, revision: str, to: Path | None, config_only: bool, as_json: bool) -> None:
    """Fetch the checkpoint REPO (org/name): config, tokenizer and safetensors, no pickles, no code.

    Says first how much it needs and refuses when that does not fit. Broken off, the same command fetches what is
    missing. HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE are honoured.

    \b
    dsv3rt download moonshotai/Moonlight-16B-A3B-Instruct
    dsv3rt download zai-org/GLM-4.7-Flash --config-only && dsv3rt inspect zai-org/GLM-4.7-Flash
    """
    facts = fetch(repo, revision=revision, to=to, config_only=config_only)
    if as_json:
        emit_json(facts)
    else:
        click.echo(facts["folder"])


def fetch(repo: str, *, revision: str = "main", to: Path | None = None, config_only: bool = False) -> dict[str, Any]:
    """Download what is missing and say where it lies. Raises UserError."""
    from dsv3rt.weights.locate import REPO_ID, cached_snapshot

    if not REPO_ID.fullmatch(repo):
        raise UsageError(f"{repo!r} is not of the form org/name", fix="as in deepseek-ai/DeepSeek-V3")
    hub = _hub()
    if hub.constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set: nothing can be downloaded", fix="unset it")
    with _one_line(repo, revision):
        files = _wanted(hub, repo, revision, config_only=config_only)
        missing = [file for file in files if not _have(hub, repo, revision, file, to)]
        need = sum(file.bytes for file in missing)
        _check_room(repo, need, to)
        click.echo(f"{repo}: {len(missing)} of {len(files)} files to fetch, {size(need)}", err=True)
        for file in missing:
            hub.hf_hub_download(repo, file.name, revision=revision, local_dir=to)
    folder = to if to is not None else cached_snapshot(repo)
    if folder is None:  # the cache holds several revisions, and this one is not main's
        folder = Path(hub.try_to_load_from_cache(repo, "config.json", revision=revision)).parent
    if not config_only:
        from dsv3rt.weights.source import Checkpoint

        Checkpoint(folder)
    return {"repo": repo, "folder": str(folder), "files": len(files), "fetched": len(missing), "fetched_bytes": need}


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
    except ImportError:
        raise UserError("huggingface_hub is not installed", fix="pip install 'dsv3rt[download]'") from None
    return huggingface_hub


def _wanted(hub: Any, repo: str, revision: str, *, config_only: bool) -> list[_File]:
    """The files to have, small ones first. Raises CheckpointError when the repository has no safetensors."""
    info = hub.HfApi().model_info(repo, revision=revision, files_metadata=True)
    listed = [_File(item.rfilename, item.size or 0) for item in info.siblings or []]
    names = [file.name for file in listed]
    if "config.json" not in names:
        raise CheckpointError(f"{repo} has no config.json: it is not a checkpoint", fix="check the name")
    if not fnmatch.filter(names, "*.safetensors"):
        raise CheckpointError(f"{repo} has no safetensors: refused, other formats can run code", fix="try another")
    patterns = _SMALL if config_only else _SMALL + _WEIGHTS
    wanted = [file for file in listed if "/" not in file.name and _matches(file.name, patterns)]
    return sorted(wanted, key=lambda file: (file.name.endswith(".safetensors"), file.name))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _have(hub: Any, repo: str, revision: str, file: _File, to: Path | None) -> bool:
    """Whether the file is here whole. In the cache only whole files have a name."""
    if to is None:
        return isinstance(hub.try_to_load_from_cache(repo, file.name, revision=revision), str)
    path = to / file.name
    return path.is_file() and path.stat().st_size == file.bytes


def _check_room(repo: str, need: int, to: Path | None) -> None:
    from dsv3rt.weights.locate import hub_cache

    place = to if to is not None else hub_cache()
    existing = next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if need + _MARGIN > free:
        raise CheckpointError(
            f"{repo} needs {size(need)} more, the disk of {place} has {size(free)} free",
            fix="choose another disk with --to or HF_HOME",
        )


@contextmanager
def _one_line(repo: str, revision: str) -> Iterator[None]:
    """What goes wrong between here and the hub, as user errors."""
    from huggingface_hub import errors

    try:
        yield
    except UserError:
        raise
    except errors.GatedRepoError:
        raise UserError(
            f"{repo} is gated", fix="accept its terms on its page, then set HF_TOKEN to a token of your account"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{repo} does not exist on the hub, or is private", fix="check the name; set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{repo} has no revision {revision!r}", fix="drop --revision") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError("the disk is full", fix="free some, then run the same command: it resumes") from None
        if _from_network(error):
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(
                f"the hub cannot be reached ({reason})", fix="check the connection and run the same command: it resumes"
            ) from None
        raise


def _from_network(error: BaseException) -> bool:
    """huggingface_hub lets its HTTP library's errors through, and that library has changed."""
    libraries = ("huggingface_hub", "httpx", "httpcore", "requests", "urllib3", "hf_xet")
    return isinstance(error, (ConnectionError, TimeoutError)) or any(
        kind.__module__.startswith(libraries) for kind in type(error).__mro__
    )

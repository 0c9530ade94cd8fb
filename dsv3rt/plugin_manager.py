"""Find plugins, isolate the broken ones, and collect what they offer into a Registry that selection reads by name."""

from __future__ import annotations

import difflib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from dsv3rt import hookspecs
from dsv3rt.errors import PluginError

ENTRY_POINT_GROUP = "dsv3rt"

# slot or other registrable kind -> the hook that fills it
REGISTERING_HOOKS = {
    "attention": "register_attention",
    "routing": "register_routing",
    "quantization": "register_quantization",
    "head": "register_head",
    "tokenizer": "register_tokenizer",
    "chat_format": "register_chat_format",
    "initialiser": "register_initialiser",
    "routing_observer": "register_routing_observer",
}


@dataclass(frozen=True)
class Owner:
    """Who a plugin is."""

    name: str
    version: str
    source: str
    """Distribution and entry point, or the file."""

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.source})"


@dataclass(frozen=True)
class Offer:
    """A named builder and who offers it."""

    name: str
    builder: Callable[..., Any]
    owner: Owner


@dataclass(frozen=True)
class Failure:
    """A plugin that could not be used."""

    owner: Owner
    reason: str


@dataclass
class Plugins:
    """Everything that was found: what works, what is offered, what failed and why."""

    manager: pluggy.PluginManager
    owners: list[Owner] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    offers: dict[str, list[Offer]] = field(default_factory=lambda: {kind: [] for kind in REGISTERING_HOOKS})

    def names(self, kind: str) -> list[str]:
        return sorted({offer.name for offer in self.offers[kind]})

    def find(self, kind: str, name: str) -> Offer:
        """The one offer called `name`. Raises PluginError when there is none, or more than one."""
        found = [offer for offer in self.offers[kind] if offer.name == name]
        if len(found) == 1:
            return found[0]
        if found:
            owners = " and ".join(str(offer.owner) for offer in found)
            raise PluginError(f"{kind} {name!r} is claimed by {owners}", fix="uninstall one of them")
        known = self.names(kind)
        close = difflib.get_close_matches(name, known, n=1)
        fix = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"
        broken = "; ".join(f"plugin {failure.owner} failed: {failure.reason}" for failure in self.failures)
        raise PluginError(f"unknown {kind} {name!r}" + (f"; {broken}" if broken else ""), fix=fix)

    def collect(self, owner: Owner, plugin: object) -> None:
        """Register `plugin` and call its registering hooks; on any failure nothing of it stays."""
        _check_hook_names(self.manager, plugin)
        taken: list[tuple[str, Offer]] = []
        self.manager.register(plugin, name=f"{owner.name}:{owner.source}")
        try:
            for kind, hook in REGISTERING_HOOKS.items():

                def register(name: str, builder: Callable[..., Any], kind: str = kind) -> None:
                    taken.append((kind, Offer(name, builder, owner)))

                others = [p for p in self.manager.get_plugins() if p is not plugin]
                self.manager.subset_hook_caller(hook, others)(register=register)
        except Exception:
            self.manager.unregister(plugin)
            raise
        for kind, offer in taken:
            self.offers[kind].append(offer)
        self.owners.append(owner)


def _check_hook_names(manager: pluggy.PluginManager, plugin: object) -> None:
    """pluggy accepts a misspelt hook silently; we do not."""
    known = set(REGISTERING_HOOKS.values()) | {"register_commands", "plan_resolved", "model_assembled"}
    for attribute in dir(plugin):
        if manager.parse_hookimpl_opts(plugin, attribute) is not None and attribute not in known:
            close = difflib.get_close_matches(attribute, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"
            raise PluginError(f"there is no hook {attribute!r}", fix=hint)


def _import_file(path: Path) -> ModuleType:
    name = f"dsv3rt_file_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{path} is not a Python file", fix="give a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up by name
    spec.loader.exec_module(module)
    return module


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _entry_points() -> Iterable[metadata.EntryPoint]:
    return sorted(metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name)


def discover(plugins: Sequence[str | Path | ModuleType | object] = (), *, warn: bool = True) -> Plugins:
    """Installed plugins (entry points in the group `dsv3rt`), then the ones given: files, or objects holding hooks.

    An installed plugin that fails costs one warning line and is listed in `failures`. One that was given explicitly and
    fails raises PluginError.
    """
    manager = pluggy.PluginManager("dsv3rt")
    manager.add_hookspecs(hookspecs)
    found = Plugins(manager)
    for entry in _entry_points():
        version = entry.dist.version if entry.dist is not None else "?"
        distribution = entry.dist.name if entry.dist is not None else "?"
        owner = Owner(entry.name, version, f"{distribution}: {entry.value}")
        try:
            found.collect(owner, entry.load())
        except Exception as error:
            found.failures.append(Failure(owner, _one_line(error)))
            if warn:
                warnings.warn(f"plugin {owner} is ignored: {_one_line(error)}", stacklevel=2)
    for given in plugins:
        if isinstance(given, (str, Path)):
            owner = Owner(Path(given).stem, "file", str(given))
        else:
            name = getattr(given, "__name__", type(given).__name__)
            owner = Owner(name, str(getattr(given, "__version__", "given")), f"object {name}")
        try:
            found.collect(owner, _import_file(Path(given)) if isinstance(given, (str, Path)) else given)
        except Exception as error:
            raise PluginError(
                f"plugin {owner.source} does not load: {_one_line(error)}", fix="correct or drop it"
            ) from error
    manager.check_pending()
    return found

"""A module's forward that becomes faster by itself: uncompiled until a compiled graph for its arguments is there.

Legend: T new tokens.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dsv3rt.compile.fingerprint import UnkeyableError, fingerprint
from dsv3rt.compile.live import LiveCompiler, graphs_made
from dsv3rt.compile.package import Call, PackageError, load_package
from dsv3rt.compile.service import Compiler, Ticket
from dsv3rt.compile.spec import GraphSpec, flatten, spec_of
from dsv3rt.compile.transport import NotPortableError, pack

log = logging.getLogger("dsv3rt.compile")


class RecompileError(RuntimeError):
    """Something had to run uncompiled, or be compiled again, after everything was said to be warm."""


@dataclass
class Counters:
    """What has happened so far, all programs of an engine together."""

    compiled: int = 0
    """Calls that ran a compiled graph."""
    uncompiled: int = 0
    late: int = 0
    """Uncompiled calls and recompilations after `Engine.warm`: there should be none."""
    graphs: set[str] = field(default_factory=set)
    """Keys of the graphs in use."""


@dataclass
class Shared:
    """What all programs of one engine have in common."""

    compiler: Compiler
    live: LiveCompiler
    wait: bool
    """Whether a call waits for its graph."""
    counters: Counters = field(default_factory=Counters)
    warm: bool = False
    strict: bool = False
    """Whether being late is an error."""
    tickets: list[Ticket] = field(default_factory=list)
    covered: int = 0
    """Above 0 while a module runs uncompiled whose own graph is being made: its parts need none."""
    _yielding: bool = False

    def yield_cores(self) -> None:
        """Leave the compiler's core to it: with as many threads as cores, every product waits for the one thread that
        the compiler keeps from running."""
        making, threads = self.compiler.making, self.compiler.threads
        if making:
            wanted = max(1, min(threads, (os.cpu_count() or 1) - making))
            if torch.get_num_threads() > wanted:
                torch.set_num_threads(wanted)
                self._yielding = True
        elif self._yielding:
            torch.set_num_threads(threads)
            self._yielding = False


@dataclass(frozen=True)
class _Group:
    """An argument that is several tensors, taken apart: caches are the same object call after call."""

    arg: Any
    flat: list[Tensor]
    shapes: int
    """The same number for the same shapes and dtypes."""
    contiguous: bool


class Plain:
    """Calls `module`, which is not compiled as a whole."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *args: Any) -> Any:
        return self.module(*args)

    def prepare(self, *args: Any) -> None:
        """There is nothing to ask for."""

    def ready(self, *args: Any) -> bool:
        """Or to wait for."""
        return True


class Program:
    """Calls `module`, or rather the compiled graph that does the same, as soon as there is one."""

    def __init__(
        self,
        module: nn.Module,
        shared: Shared,
        *,
        token_dims: Mapping[int, int] | None = None,
        urgency: int = 0,
    ) -> None:
        """token_dims: see `spec_of`."""
        self.module = module
        self.shared = shared
        self.token_dims = token_dims or {}
        self.urgency = urgency
        self._ready: dict[tuple[Any, ...], Call] = {}
        """Shapes and dtypes of the arguments -> the graph for them."""
        self._asked: dict[tuple[Any, ...], _Wanted | None] = {}
        """The same -> the graph that is being made for them, None if there will be none."""
        self._loaded: dict[str, Call] = {}
        self._groups: dict[int, _Group] = {}
        """Argument index -> what was there in the last call."""
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._fingerprint: str | None = None

    def __call__(self, *args: Any) -> Any:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.module(*args)
        flat: list[Tensor] = []
        signature, contiguous = self._take_apart(args, flat)
        if signature is None:
            return self.module(*args)
        if not self.shared.wait:
            self.shared.yield_cores()
        graph = self._ready.get(signature)
        if graph is None:
            graph = self._find(signature, args, wait=self.shared.wait)
        if graph is None or not contiguous:
            return self._uncompiled(args, flat, graph, signature)
        self.shared.counters.compiled += 1
        return graph(flat)

    def prepare(self, *args: Any) -> None:
        """Ask for the graph for such arguments without calling it."""
        signature, _ = self._take_apart(args, [])
        if signature is not None and signature not in self._ready:
            self._find(signature, args, wait=False)

    def ready(self, *args: Any) -> bool:
        """Ask for the graph for such arguments, and say whether it is there."""
        signature, _ = self._take_apart(args, [])
        if signature is None:
            return False
        return signature in self._ready or self._find(signature, args, wait=self.shared.wait) is not None

    def _take_apart(self, args: tuple[Any, ...], flat: list[Tensor]) -> tuple[tuple[Any, ...] | None, bool]:
        """Puts all tensors into `flat`. (Their shapes and dtypes, None if something is no tensor: a call without
        caches, say; whether all are contiguous.)"""
        signature: list[Any] = []
        contiguous = True
        for index, arg in enumerate(args):
            if isinstance(arg, Tensor):
                flat.append(arg)
                signature.append(arg.shape)
                signature.append(arg.dtype)
                contiguous = contiguous and arg.is_contiguous()
                continue
            group = self._groups.get(index)
            if group is None or group.arg is not arg:
                try:
                    group = self._groups[index] = self._group(arg)
                except TypeError:
                    return None, False
            flat += group.flat
            signature.append(group.shapes)
            contiguous = contiguous and group.contiguous
        return tuple(signature), contiguous

    def _group(self, arg: Any) -> _Group:
        flat = flatten(arg, [])
        shapes = tuple([(tensor.shape, tensor.dtype) for tensor in flat])
        number = self._numbers.setdefault(shapes, len(self._numbers))
        return _Group(arg, flat, number, all([tensor.is_contiguous() for tensor in flat]))

    def _uncompiled(
        self, args: tuple[Any, ...], flat: list[Tensor], graph: Call | None, signature: tuple[Any, ...]
    ) -> Any:
        if graph is not None:
            # arguments but caches may be copied into shape; a cache is written in place and may not
            args = tuple(arg.contiguous() if isinstance(arg, Tensor) else arg for arg in args)
            flat = flatten(args, [])
            if all(tensor.is_contiguous() for tensor in flat):
                self.shared.counters.compiled += 1
                return graph(flat)
        counters = self.shared.counters
        counters.uncompiled += 1
        if self.shared.warm:
            self._late("a call ran uncompiled after warm-up", flat)
        if self._asked.get(signature) is None:  # no graph of its own will come: its parts need theirs
            return self.module(*args)
        self.shared.covered += 1
        try:
            return self.module(*args)
        finally:
            self.shared.covered -= 1

    def _late(self, what: str, flat: list[Tensor]) -> None:
        counters = self.shared.counters
        counters.late += 1
        text = f"{what}: {type(self.module).__name__} on {[tuple(tensor.shape) for tensor in flat[:3]]}"
        if self.shared.strict:
            raise RecompileError(text)
        if counters.late == 1:
            log.warning("%s (slower; counted, not said again)", text)

    def _find(self, signature: tuple[Any, ...], args: tuple[Any, ...], *, wait: bool) -> Call | None:
        """The graph for these arguments if it is there by now; asks for it the first time."""
        if signature not in self._asked:
            if self.shared.covered:
                return None
            self._asked[signature] = self._ask(args)
        while (wanted := self._asked[signature]) is not None:
            if wait:
                wanted.ticket.done.wait()
            elif not wanted.ticket.done.is_set():
                return None
            if (call := self._load(wanted.ticket)) is not None:
                self._ready[signature] = call
                return call
            self._asked[signature] = self._ask_instead(wanted, args)
        return None

    def _ask_instead(self, wanted: _Wanted, args: tuple[Any, ...]) -> _Wanted | None:
        """After a graph that came to nothing."""
        if wanted.ticket.dropped:
            return self._ask(args)
        if wanted.ticket.refused and any(name == "T" for name, _, _ in wanted.spec.ranges):
            self.token_dims = {}  # it depends on the number of tokens after all: one graph for each
            return self._ask(args)
        return None

    def _ask(self, args: tuple[Any, ...]) -> _Wanted | None:
        spec = spec_of(args, self.token_dims)
        if spec is None:
            return None
        try:
            key = self.key(spec)
            urgency = self.urgency + 4 * spec.many_tokens
            ticket = self.shared.compiler.request(key, spec, lambda: pack(self.module), urgency)
        except (UnkeyableError, NotPortableError) as reason:
            log.info("%s is compiled in this process, and again at each start: %s", type(self.module).__name__, reason)
            ticket = self.shared.live.request(self.module, spec, args)
        self.shared.tickets.append(ticket)
        return _Wanted(ticket, spec)

    def key(self, spec: GraphSpec) -> str:
        """The store's key of the graph for `spec`. Raises UnkeyableError."""
        import hashlib

        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.module, self.shared.compiler.threads)
        return hashlib.sha256(f"{self._fingerprint} {spec.canonical()}".encode()).hexdigest()[:32]

    def _watched(self, live: Call) -> Call:
        """A live graph that notices when torch.compile compiles it again."""

        def call(flat: list[Tensor]) -> Any:
            before = graphs_made()
            result = live(flat)
            if self.shared.warm and graphs_made() != before:
                self._late("torch.compile compiled again after warm-up", flat)
            return result

        return call

    def _load(self, ticket: Ticket) -> Call | None:
        if ticket.live is not None:
            return self._watched(ticket.live)
        if ticket.entry is None:
            return None
        if ticket.key not in self._loaded:
            try:
                self._loaded[ticket.key] = load_package(ticket.entry, self.module)
            except PackageError as error:
                self.shared.compiler.drop(ticket, str(error))
                return None
            self.shared.counters.graphs.add(ticket.key)
        return self._loaded[ticket.key]


@dataclass(frozen=True)
class _Wanted:
    ticket: Ticket
    spec: GraphSpec

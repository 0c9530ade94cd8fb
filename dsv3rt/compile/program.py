"""A module's forward that becomes faster by itself: uncompiled until a compiled graph for its arguments is there.

Legend: T new tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
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


class Program:
    """Calls `module`, or rather the compiled graph that does the same, as soon as there is one."""

    def __init__(
        self,
        module: nn.Module,
        shared: Shared,
        *,
        token_dims: Mapping[int, int] | None = None,
        urgency: int = 0,
        run: Callable[..., Any] | None = None,
    ) -> None:
        """token_dims: see `spec_of`. run: what to call while there is no graph; default the module."""
        self.module = module
        self.shared = shared
        self.token_dims = token_dims or {}
        self.urgency = urgency
        self.run: Callable[..., Any] = module if run is None else run
        self._ready: dict[tuple[Any, ...], Call] = {}
        """Shapes and dtypes of the arguments -> the graph for them."""
        self._asked: dict[tuple[Any, ...], _Wanted | None] = {}
        """The same -> the graph that is being made for them, None if there will be none."""
        self._loaded: dict[str, Call] = {}
        self._fingerprint: str | None = None

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return self.run(*args)
        try:
            flat = flatten(args, [])
        except TypeError:  # an argument that is no tensor: a call without caches, say
            return self.run(*args)
        signature = _signature(flat)
        graph = self._ready.get(signature)
        if graph is None:
            graph = self._find(signature, args)
        if graph is None or not all([tensor.is_contiguous() for tensor in flat]):
            return self._uncompiled(args, flat, graph)
        self.shared.counters.compiled += 1
        return graph(flat)

    def _uncompiled(self, args: tuple[Any, ...], flat: list[Tensor], graph: Call | None) -> Any:
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
        if self._asked.get(_signature(flat)) is None:  # no graph of its own will come: its parts need theirs
            return self.run(*args)
        self.shared.covered += 1
        try:
            return self.run(*args)
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

    def _find(self, signature: tuple[Any, ...], args: tuple[Any, ...]) -> Call | None:
        """The graph for these arguments if it is there by now; asks for it the first time."""
        if signature not in self._asked:
            if self.shared.covered:
                return None
            self._asked[signature] = self._ask(args)
        wanted = self._asked[signature]
        if wanted is None:
            return None
        if self.shared.wait:
            wanted.ticket.done.wait()
        elif not wanted.ticket.done.is_set():
            return None
        call = self._load(wanted.ticket, wanted.spec)
        if call is None:
            self._asked[signature] = None
        else:
            self._ready[signature] = call
        return call

    def _ask(self, args: tuple[Any, ...]) -> _Wanted | None:
        spec = spec_of(args, self.token_dims)
        if spec is None:
            return None
        try:
            key = self.key(spec)
            prefill = any(name == "T" and most > 16 for name, _, most in spec.ranges)
            ticket = self.shared.compiler.request(key, spec, lambda: pack(self.module), self.urgency + 4 * prefill)
        except (UnkeyableError, NotPortableError) as reason:
            log.info("%s is compiled in this process, and again at each start: %s", type(self.module).__name__, reason)
            ticket = self.shared.live.request(self.module, spec, args)
        self.shared.tickets.append(ticket)
        return _Wanted(ticket, spec)

    def key(self, spec: GraphSpec) -> str:
        """The store's key of the graph for `spec`. Raises UnkeyableError."""
        import hashlib

        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.module)
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

    def _load(self, ticket: Ticket, spec: GraphSpec) -> Call | None:
        if ticket.live is not None:
            return self._watched(ticket.live)
        if ticket.entry is None:
            return None
        if ticket.key not in self._loaded:
            try:
                self._loaded[ticket.key] = load_package(ticket.entry, self.module)
            except PackageError as error:
                log.warning("discarded a compiled graph that does not fit, running uncompiled: %s", error)
                self.shared.compiler.store.discard(ticket.key)
                return None
            self.shared.counters.graphs.add(ticket.key)
        return self._loaded[ticket.key]


def _signature(flat: list[Tensor]) -> tuple[Any, ...]:
    return tuple([(tensor.shape, tensor.dtype) for tensor in flat])


@dataclass(frozen=True)
class _Wanted:
    ticket: Ticket
    spec: GraphSpec

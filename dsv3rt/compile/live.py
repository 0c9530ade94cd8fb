"""torch.compile in this process: for GPUs, and for modules that cannot be rebuilt in another process.

A graph is compiled in a thread, by calling it once with arguments like those it is wanted for, and used from then on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsv3rt.compile.service import Ticket
from dsv3rt.compile.spec import ArgSpec, GraphSpec, TensorSpec, unflatten

log = logging.getLogger("dsv3rt.compile")


class LiveCompiler:
    """Compiles one graph after another: torch.compile must not run twice at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made = 0

    def request(self, module: nn.Module, spec: GraphSpec, args: Sequence[Any]) -> Ticket:
        """A ticket whose `live` is set once the graph is there. `args` are copied from in shape only."""
        self._made += 1
        ticket = Ticket(f"live-{self._made}")
        trial = _like(args, spec.args)
        threading.Thread(target=self._make, args=(module, spec, trial, ticket), daemon=True).start()
        return ticket

    def _make(self, module: nn.Module, spec: GraphSpec, trial: Sequence[Any], ticket: Ticket) -> None:
        with self._lock:
            started = time.perf_counter()
            try:
                compiled: Callable[..., Any] = torch.compile(module, fullgraph=True, dynamic=False)
                with torch.inference_mode():
                    compiled(*trial)
            except Exception as error:
                ticket.error = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                ticket.refused = True
                log.warning("a part of the model stays uncompiled: %s", ticket.error)
            else:
                ticket.live = lambda flat: compiled(*unflatten(spec.args, iter(flat)))
            ticket.seconds = time.perf_counter() - started
            ticket.done.set()


def graphs_made() -> int:
    """How many graphs torch.compile has made in this process."""
    import sys

    dynamo = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else int(dynamo.counters["stats"]["unique_graphs"])


def _like(args: Sequence[Any], specs: Sequence[ArgSpec]) -> tuple[Any, ...]:
    """Arguments of the same shapes, holding zeros, with the sizes that vary marked as such."""
    made: list[Any] = []
    for arg, spec in zip(args, specs, strict=True):
        if isinstance(spec, TensorSpec):
            assert isinstance(arg, Tensor)
            trial = torch.zeros_like(arg)
            for d, size in enumerate(spec.shape):
                if isinstance(size, str):
                    torch._dynamo.mark_dynamic(trial, d)
            made.append(trial)
        else:
            made.append(_like(arg, spec))
    return tuple(made)

"""Head slot: multi-token prediction, the modules the official checkpoints carry behind their last layer."""

from __future__ import annotations

from collections.abc import Callable

from dsv3rt import hookimpl
from dsv3rt.interfaces import HeadBuilder
from dsv3rt_mtp.head import MTPHead


@hookimpl
def register_head(register: Callable[[str, HeadBuilder], None]) -> None:
    register("mtp", MTPHead)

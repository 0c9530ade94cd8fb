"""Attention slot: multi-head latent attention."""

from __future__ import annotations

from collections.abc import Callable

from dsv3rt import hookimpl
from dsv3rt.interfaces import AttentionBuilder
from dsv3rt_mla.attention import LatentAttention


@hookimpl
def register_attention(register: Callable[[str, AttentionBuilder], None]) -> None:
    register("mla", LatentAttention)

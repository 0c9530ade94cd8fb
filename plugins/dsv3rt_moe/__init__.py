"""Routers of the family: V3's bias-balanced sigmoid router and V2's two softmax routers."""

from __future__ import annotations

from collections.abc import Callable

from dsv3rt import hookimpl
from dsv3rt.interfaces import RoutingBuilder
from dsv3rt_moe.routers import BiasTopK, SoftmaxGroupTopK, SoftmaxTopK


@hookimpl
def register_routing(register: Callable[[str, RoutingBuilder], None]) -> None:
    register("bias_topk", BiasTopK)
    register("softmax_topk", SoftmaxTopK)
    register("softmax_group_topk", SoftmaxGroupTopK)

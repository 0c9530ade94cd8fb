"""Plans and assembly: explicit choice, blame on the right plugin, plain modules afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from dsv3rt import hookimpl
from dsv3rt.assembly import build, parse_choice, resolve_plan
from dsv3rt.errors import PluginError, UsageError, UserError
from dsv3rt.plugin_manager import discover
from dsv3rt.testing.contracts import SMALL, RandomSource, fill


class Hooks:
    """A plugin made of the hooks it is given."""

    def __init__(self, **hooks: Callable[..., Any]) -> None:
        for name, hook in hooks.items():
            setattr(self, name, hookimpl(hook))


def test_options_after_a_name() -> None:
    assert parse_choice("routing", "x") == ("x", {})
    assert parse_choice("routing", "x:a=1,b=two") == ("x", {"a": "1", "b": "two"})
    for bad in ("x:a", ":a=1", "", "x:=1"):
        with pytest.raises(UsageError):
            parse_choice("routing", bad)


def test_defaults_follow_the_family() -> None:
    plan = resolve_plan(SMALL, discover(), device="cpu")
    assert plan.attention.name == "mla" and plan.quantization.name == "dense"
    assert plan.routing is not None and plan.routing.name == "bias_topk"
    assert plan.dtype == torch.float32


def test_the_plan_cannot_be_changed() -> None:
    plan = resolve_plan(SMALL, discover(), device="cpu")
    with pytest.raises(AttributeError):
        plan.max_context = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": "float12"}, "unknown dtype"),
        ({"max_context": 10**9}, "outside 1.."),
        ({"max_context": 0}, "outside 1.."),
        ({"dtype": "fp8"}, "nothing can be computed in 8 bits"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"device": "mps"}, "device 'mps' is not supported"),
        ({"device": "cuda:99"}, "there is no device cuda:99"),
    ],
)
def test_bad_options_are_usage_errors(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        resolve_plan(SMALL, discover(), **options)


def test_plan_resolved_may_refuse() -> None:
    def refuse(plan: Any) -> None:
        raise UserError(f"not with {plan.routing.name}", fix="choose another")

    with pytest.raises(UserError, match="not with bias_topk"):
        resolve_plan(SMALL, discover([Hooks(plan_resolved=refuse)]), device="cpu")


def test_a_failing_builder_is_blamed_on_its_plugin() -> None:
    def builder(site: Any) -> nn.Module:
        raise KeyError("temperature")

    plugin = Hooks(register_routing=lambda register: register("bad", builder))
    found = discover([plugin])
    with pytest.raises(PluginError, match=r"routing 'bad' of plugin Hooks .* failed to build: KeyError"):
        build(resolve_plan(SMALL, found, routing="bad", device="cpu", head="none"), found)


def test_an_option_that_no_builder_reads_is_refused() -> None:
    def builder(site: Any) -> nn.Module:
        site.options.get("noise")
        return nn.Identity()

    found = discover([Hooks(register_routing=lambda register: register("noisy", builder))])
    build(resolve_plan(SMALL, found, routing="noisy:noise=1", device="cpu", head="none"), found)
    for slot, choice in (("routing", "noisy:nois=1"), ("attention", "mla:nois=1")):
        plan = resolve_plan(SMALL, found, device="cpu", head="none", **{slot: choice})
        with pytest.raises(UsageError, match=f"--{slot} .* has no option 'nois'"):
            build(plan, found)


def test_assembly_happens_on_meta_with_official_names() -> None:
    found = discover()
    model = build(resolve_plan(SMALL, found, device="cpu", head="none"), found).decoder
    names = dict(model.named_parameters())
    assert all(parameter.is_meta for parameter in names.values())
    assert {
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.kv_a_proj_with_mqa.weight",
        "model.layers.1.post_attention_layernorm.weight",
        "model.layers.1.mlp.gate.weight",
        "model.norm.weight",
        "lm_head.weight",
    } <= set(names)


def test_no_pluggy_call_after_assembly_and_no_graph_break() -> None:
    found = discover()
    model = build(resolve_plan(SMALL, found, device="cpu", head="none"), found).decoder
    source = RandomSource()
    for name, child in model.named_children():
        fill(child, name, source)

    calls: list[str] = []
    found.manager.add_hookcall_monitoring(lambda name, *_: calls.append(name), lambda *_: None)
    found.manager.hook.plan_resolved(plan=None)
    assert calls == ["plan_resolved"], "the monitor itself works"
    caches = model.make_caches(64, torch.device("cpu"))
    with torch.no_grad():
        for tokens in (1, 3, 20):
            ids, positions = torch.zeros(1, tokens, dtype=torch.int64), torch.arange(tokens)[None]
            torch._dynamo.reset()
            explained = torch._dynamo.explain(model)(ids, positions, caches, 1)
            assert explained.graph_break_count == 0, explained.break_reasons
            assert explained.graph_count == 1
    assert calls == ["plan_resolved"], "a hook ran after assembly"


def test_observers_see_and_change_nothing() -> None:
    seen: list[tuple[int, tuple[int, ...]]] = []
    found = discover()
    plan = resolve_plan(SMALL, found, device="cpu", head="none")
    watched = build(plan, found, [lambda layer, weights, ids: seen.append((layer, tuple(ids.shape)))]).decoder
    plain = build(plan, found).decoder
    source = RandomSource()
    ids, positions = torch.arange(5)[None], torch.arange(5)[None]
    results = []
    for model in (watched, plain):
        for name, child in model.named_children():
            fill(child, name, source)
        with torch.no_grad():
            results.append(model(ids, positions)[0])
    assert seen == [(1, (5, SMALL.num_experts_per_tok))]
    assert torch.equal(*results)

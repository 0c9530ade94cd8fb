"""Who packs which weights, and when; modules say the same with copies, and none of changed weights is read.

Legend: T tokens, D hidden, F expert hidden, E experts, K chosen experts.
"""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dsv3rt_fp8 import native_ops, packing
from dsv3rt_fp8.experts import Experts
from dsv3rt_fp8.modules import FeedForward, Linear, Storage
from dsv3rt_fp8.packing import Packer, units_of
from dsv3rt_fp8.quantization import BlockFP8, Dense
from stored import Stored, same
from torch import Tensor, nn

import dsv3rt
from dsv3rt.compile.engine import Engine
from dsv3rt.errors import UsageError
from dsv3rt.generate.sequence import Sequence
from dsv3rt.interfaces import PacksWeights, Site
from dsv3rt.runtime import Runtime
from dsv3rt.testing.contracts import SMALL
from dsv3rt.testing.presets import preset
from dsv3rt.testing.synth import random_checkpoint

CPU = torch.device("cpu")
STORAGE = Storage(torch.float32)
TOKENS = (1, 2, 3, 4, 7, 16, 17)
E, D, F, K = 5, 200, 140, 2


# ---- modules


def matrices(prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
    shapes = {"gate_proj": (F, D), "up_proj": (F, D), "down_proj": (D, F)}
    return {f"{prefix}.{name}.weight": (torch.randn(shape) / 14).to(dtype) for name, shape in shapes.items()}


class Model(nn.Module):
    """One of each kind."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        with torch.device("meta"):
            self.linear, self.ffn = Linear(D, 77, STORAGE), FeedForward(D, F, STORAGE)
            self.experts = Experts(E, D, F, STORAGE)
        self.linear.load_tensors(Stored({"m.weight": (torch.randn(77, D) / 14).to(dtype)}), "m", CPU)
        for name, child in self.ffn.named_children():
            child.load_tensors(Stored(matrices("mlp", dtype)), f"mlp.{name}", CPU)  # type: ignore[operator]
        tensors = {name: tensor for e in range(E) for name, tensor in matrices(f"x.{e}", dtype).items()}
        self.experts.load_tensors(Stored(tensors), "x", CPU)
        self.eval()

    def forward(self, x: Tensor, weights: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.linear(x), self.ffn(x), self.experts(x, weights, ids)


def routing(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.stack([torch.randperm(E)[:K] for _ in range(tokens)])
    return torch.randn(tokens, D), torch.rand(tokens, K), ids


def packed_model() -> tuple[Model, Packer]:
    model, packer = Model(), Packer()
    packer.start([model], "on", K)
    assert packer.wait(60)
    return model, packer


@torch.no_grad()
def assert_model(model: Model, expected: Model, tokens: tuple[int, ...] = TOKENS) -> None:
    for count in tokens:
        arguments = routing(count)
        for y, plain in zip(model(*arguments), expected(*arguments), strict=True):
            assert same(y, plain), count


def unpacked(model: Model) -> Model:
    """The same weights without copies."""
    plain = Model()
    plain.load_state_dict(model.state_dict(), assign=True)
    return plain.eval()


def in_use(model: nn.Module) -> int:
    """How many packed copies products read."""
    parts = [part for part in model.modules() if isinstance(part, Linear)]
    return sum(1 for m in parts if m.packed is not None and native_ops.packed_read_bytes(m.weight, m.packed))


def test_modules_say_the_same_packed(packs: str) -> None:
    model, packer = packed_model()
    assert in_use(model) == 1 + 3 + 3 * E and len(packer.units) == 3
    assert_model(model, unpacked(model))
    one = [slice(t, t + 1) for t in range(16)]
    x, weights, ids = routing(16)
    with torch.no_grad():
        alone = torch.cat([model.experts(x[t], weights[t], ids[t]) for t in one])
        assert torch.equal(model.experts(x, weights, ids), alone)


def test_what_is_saved(packs: str) -> None:
    model, packer = packed_model()
    every = (model.linear, model.ffn.gate_proj, model.ffn.up_proj, model.ffn.down_proj)
    read = [native_ops.packed_read_bytes(m.weight, m.packed) for m in every if m.packed is not None]
    saved = sum(m.weight.nbytes for m in every) - sum(read)
    assert packer.saved_bytes_per_token(model.linear) == every[0].weight.nbytes - read[0]
    assert packer.saved_bytes_per_token(nn.ModuleList([model.linear, model.ffn])) == saved
    assert packer.saved_bytes_per_token(nn.ModuleList()) == 0
    of_experts = packer.saved_bytes_per_token(model) - saved
    assert of_experts == pytest.approx((saved - (every[0].weight.nbytes - read[0])) * K, rel=0.1)


@pytest.fixture
def whole() -> Iterator[tuple[Model, Packer]]:
    if not native_ops.reads_packed():
        pytest.skip("nothing is packed here")
    yield packed_model()


def test_names_are_official(whole: tuple[Model, Packer]) -> None:
    assert set(whole[0].state_dict()) == set(Model().state_dict())


@torch.no_grad()
def test_weights_that_are_written_are_read(whole: tuple[Model, Packer]) -> None:
    model, _ = whole
    other = Model()
    model.load_state_dict(other.state_dict())
    assert in_use(model) == 0
    assert_model(model, other)


@pytest.mark.parametrize("mode", [True, False])
@torch.no_grad()
def test_training_ends_the_use_of_copies(whole: tuple[Model, Packer], mode: bool) -> None:
    model, _ = whole
    model.train(mode)
    for parameter in model.parameters():
        parameter.mul_(-1.5)
    assert in_use(model) == 0
    assert_model(model, unpacked(model))


def test_so_does_a_gradient(whole: tuple[Model, Packer]) -> None:
    model, _ = whole
    model.requires_grad_(True)
    sum(y.sum() for y in model(*routing(16))).backward()  # type: ignore[union-attr]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad)
    assert_model(model, unpacked(model))


def test_moved_weights_have_none(whole: tuple[Model, Packer]) -> None:
    model, _ = whole
    model.to(torch.float32)
    assert in_use(model) == 0 and model.linear.packed is None
    with torch.no_grad():
        x = torch.randn(2, D)
        assert torch.equal(model.linear(x), torch.ops.dsv3rt.dense_linear(x, model.linear.weight))


def test_a_compiled_graph_notices_that_weights_have_changed(whole: tuple[Model, Packer]) -> None:
    model, _ = whole
    arguments = routing(2)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)
        for y, plain in zip(compiled(*arguments), model(*arguments), strict=True):
            assert torch.equal(y, plain)
        linear = torch.compile(model.linear, fullgraph=True)
        linear(arguments[0])
        model.linear.discard_packed()
        model.linear.weight.mul_(2)
        assert torch.equal(linear(arguments[0]), torch.ops.dsv3rt.dense_linear(arguments[0], model.linear.weight))


# ---- the packer


def test_packing_goes_on_beside_the_use(whole: tuple[Model, Packer], monkeypatch: pytest.MonkeyPatch) -> None:
    """Products before, while and after it say the same."""
    go, real = threading.Semaphore(0), native_ops.pack_weights

    def slowly(*arguments: object) -> bool:
        go.acquire()
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(native_ops, "pack_weights", slowly)
    model, packer = Model(), Packer()
    packer.start([model], "on", K)
    plain = unpacked(model)
    assert not packer.wait(0.01)
    for done in range(1 + 3 + 3 * E):
        assert in_use(model) <= done
        assert_model(model, plain, (1, 3))
        go.release()
    assert packer.wait(60) and in_use(model) == 1 + 3 + 3 * E
    assert_model(model, plain)


@torch.no_grad()
def test_it_begins_with_the_first_product_that_would_read_one(whole: tuple[Model, Packer]) -> None:
    model, packer = Model(), Packer()
    packer.start([model], "on", K)
    assert packer._thread is not None
    model(*routing(20))
    packer._thread.join(4 * packing.LOOK_EVERY_S)
    assert packer._thread.is_alive() and in_use(model) == 0
    model(*routing(1))
    packer._thread.join(60)
    assert in_use(model) == 1 + 3 + 3 * E


def test_a_model_that_is_dropped(whole: tuple[Model, Packer], monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread keeps nothing alive but the matrix it is at, and ends in the middle of that."""
    started, packed, real = threading.Event(), [], native_ops.pack_weights

    def slowly(weight: Tensor, room: native_ops.Room, stop: ctypes.c_int32) -> bool:
        started.set()
        while not stop.value:
            time.sleep(0.001)
        packed.append(real(weight, room, stop))
        return packed[-1]

    monkeypatch.setattr(native_ops, "pack_weights", slowly)
    model, packer = Model(), Packer()
    packer.start([model], "on", K)
    thread, there = packer._thread, weakref.ref(model.experts)
    assert thread is not None and not packer.wait(0) and started.wait(60)
    del model, packer
    gc.collect()
    assert there() is None and not thread.is_alive() and packed == [False]


def test_a_program_that_ends_meanwhile() -> None:
    if not native_ops.reads_packed():
        pytest.skip("nothing is packed here")
    program = """
import torch
from dsv3rt_fp8.modules import Linear, Storage
from dsv3rt_fp8.packing import Packer
model = torch.nn.ModuleList(Linear(4096, 4096, Storage(torch.bfloat16)).requires_grad_(False).eval() for _ in range(8))
for part in model:
    torch.nn.init.normal_(part.weight)
packer = Packer()
packer.start([model], "on", 1)
assert not packer.wait(0.01)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_what_is_packed(whole: tuple[Model, Packer], monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    weights = sum(parameter.nbytes for parameter in model.parameters())

    def chosen(mode: packing.PackMode, model: Model = model) -> int:
        packer = Packer()
        packer.start([model], mode, K)
        assert packer.wait(60)
        return len(packer.units)

    assert chosen("off") == 0 and chosen("auto") == 0  # it fits into a cache
    monkeypatch.setattr(packing, "LEAST_MODEL", 1)
    assert chosen("auto") == 0  # so does each matrix
    monkeypatch.setattr(packing, "LEAST_MATRIX", 1)
    monkeypatch.setattr(packing, "available_memory", lambda: 2 * weights)
    assert chosen("auto") == 0  # the copies would not leave enough
    monkeypatch.setattr(packing, "available_memory", lambda: 4 * weights)
    assert chosen("auto") == 3
    assert chosen("on", Model(torch.float32)) == chosen("on", Model(torch.float16)) == 0


def test_what_is_met_twice_is_packed_once() -> None:
    model = Model()
    units = list(units_of([model, nn.ModuleList([model.linear, model.experts])], K))
    assert [len(unit.matrices) for unit in units] == [1, 3, 3 * E]


# ---- the slot


def site(**options: str) -> Site:
    placeholder: object = None
    return Site(SMALL, 0, "", placeholder, torch.float32, torch.float32, CPU, options)  # type: ignore[arg-type]


@pytest.mark.parametrize("builder", [Dense, BlockFP8])
def test_the_option(builder: type[Dense] | type[BlockFP8]) -> None:
    assert isinstance(builder(site()), PacksWeights)
    with pytest.raises(UsageError, match="auto, on, off"):
        builder(site(pack="yes"))
    with pytest.raises(UsageError, match="pack=on"):
        builder(replace(site(pack="on"), device=torch.device("cuda")))
    if native_ops.reads_packed():
        assert "packed" in builder(site()).describe(CPU)
    assert "packed" not in builder(site(pack="off")).describe(CPU)


def test_what_attention_reads_itself_is_not_packed() -> None:
    slot = Dense(site())
    assert not slot.linear(8, 8, prefix="model.layers.0.self_attn.kv_b_proj").packable
    assert slot.linear(8, 8, prefix="model.layers.0.self_attn.o_proj").packable


# ---- a whole model


PROMPT = [index * 7 % 500 for index in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    random_checkpoint(folder, preset("tiny"))
    return folder


def load(folder: Path, pack: str) -> Runtime:
    if not native_ops.reads_packed():
        pytest.skip("nothing is packed here")
    return dsv3rt.load(folder, quantization=f"dense:pack={pack}", max_context=512, compile="off")


def test_a_model_says_the_same(folder: Path) -> None:
    packed, plain = load(folder, "on"), load(folder, "off")
    first = packed.logits(PROMPT[:5])
    assert packed.wait(60)
    assert packed.saved_bytes_per_token > 0 and plain.saved_bytes_per_token == 0
    assert in_use(packed.engine.decoder) > 20 and in_use(packed.head) > 10
    assert torch.equal(first, plain.logits(PROMPT[:5]))
    for count in (1, 2, 3, 16, 17, 40):
        assert torch.equal(packed.logits(PROMPT[:count]), plain.logits(PROMPT[:count]))
    said = [runtime.generate(PROMPT, max_tokens=24, temperature=0, ignore_eos=True) for runtime in (packed, plain)]
    assert said[0].token_ids == said[1].token_ids
    assert said[0].speculation.accepted == said[1].speculation.accepted


def test_packing_in_the_middle_of_an_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, real = threading.Semaphore(0), native_ops.pack_weights

    def slowly(*arguments: Any) -> bool:
        go.acquire()
        return real(*arguments)

    expected = load(folder, "off").generate(PROMPT, max_tokens=60, temperature=0, ignore_eos=True).token_ids
    monkeypatch.setattr(native_ops, "pack_weights", slowly)
    packed = load(folder, "on")
    said: list[int] = []
    for chunk in packed.stream(PROMPT, max_tokens=60, temperature=0, ignore_eos=True):
        said += chunk.token_ids
        go.release(10)
    assert said == expected
    go.release(10_000)
    assert packed.wait(60)


@pytest.mark.slow
def test_compiled_graphs_read_them(folder: Path, tmp_path: Path) -> None:
    """From the store too: a graph is made without the weights and serves all that are packed."""

    def logits(pack: str) -> list[Tensor]:
        runtime = load(folder, pack)
        assert runtime.wait(60)
        engine = Engine(runtime.engine.decoder, "wait", cache_folder=tmp_path)
        result = [Sequence(engine, 512, CPU).extend(PROMPT[:count], last=None)[0] for count in (1, 2, 16)]
        assert engine.counters.uncompiled == 0 and engine.counters.compiled == 3
        engine.close()
        return result

    plain = logits("off")
    for _ in range(2):
        assert all(same(*pair) for pair in zip(logits("on"), plain, strict=True))

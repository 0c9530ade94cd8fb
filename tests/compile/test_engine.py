"""Compiling behind the user's back: same text, no breaks, nothing compiled again, and it may fail at any time."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pluggy
import pytest
import torch

import dsv3rt
from dsv3rt.compile.engine import Engine, _bare
from dsv3rt.compile.fingerprint import UnkeyableError, fingerprint
from dsv3rt.compile.program import RecompileError
from dsv3rt.compile.transport import pack, unpack
from dsv3rt.errors import UsageError
from dsv3rt.generate.sequence import Sequence
from dsv3rt.runtime import Runtime
from dsv3rt.testing.presets import preset
from dsv3rt.testing.synth import random_checkpoint

pytestmark = pytest.mark.threads
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    random_checkpoint(folder, preset("tiny"))
    return folder


@pytest.fixture(scope="module")
def plain(folder: Path) -> Runtime:
    return dsv3rt.load(folder, compile="off", head="none", max_context=512)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(scope="module")
def compiled(folder: Path, store: Path) -> Iterator[Engine]:
    """A whole step for one token, and blocks for prompts of 17 tokens and more."""
    decoder = dsv3rt.load(folder, compile="off", head="none", max_context=512).engine.decoder
    engine = Engine(decoder, "wait", cache_folder=store)
    yield engine
    engine.close()


def greedy(engine: Engine, prompt: list[int], count: int) -> tuple[list[int], torch.Tensor]:
    sequence = Sequence(engine, 512, CPU)
    logits, _ = sequence.extend(prompt)
    tokens = []
    for _ in range(count):
        tokens.append(int(logits[-1].argmax()))
        logits, _ = sequence.extend(tokens[-1:])
    return tokens, logits


PROMPT = [index * 7 % 500 for index in range(40)]


@pytest.mark.slow
def test_compiled_says_what_uncompiled_says(plain: Runtime, compiled: Engine) -> None:
    expected, reference = greedy(plain.engine, PROMPT, 24)
    tokens, logits = greedy(compiled, PROMPT, 24)
    assert tokens == expected
    assert (logits - reference).abs().max() <= 1e-3 * reference.std()
    assert compiled.counters.uncompiled == 0 and compiled.counters.compiled > 24


def test_a_second_engine_starts_from_the_store(folder: Path, store: Path, compiled: Engine) -> None:
    greedy(compiled, PROMPT, 1)
    decoder = dsv3rt.load(folder, compile="off", head="none", max_context=256).engine.decoder
    engine = Engine(decoder, "auto", cache_folder=store)
    greedy(engine, PROMPT, 4)
    assert engine.counters.uncompiled == 0 and engine.compile_s == 0


@pytest.mark.slow
def test_nothing_is_compiled_again_over_2000_tokens(compiled: Engine) -> None:
    greedy(compiled, PROMPT, 1)
    compiled.warm(strict=True)
    try:
        draw = random.Random(0)
        done = 0
        while done < 2000:
            sequence = Sequence(compiled, draw.choice([300, 512, 1024]), CPU)
            logits, _ = sequence.extend([draw.randrange(500) for _ in range(draw.randrange(17, 200))])
            count = min(draw.randrange(50, 300), sequence.capacity - len(sequence.token_ids))
            for _ in range(count):
                logits, _ = sequence.extend([int(torch.multinomial(logits[-1].softmax(-1), 1))])
            done += count
        assert compiled.counters.late == 0
    finally:
        compiled.warm(strict=False)
        compiled._shared.warm = False


def test_being_late_is_an_error_or_counted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = dsv3rt.load(folder, compile="off", head="none", max_context=256).engine.decoder
    engine = Engine(decoder, "block", cache_folder=tmp_path)
    monkeypatch.setattr(engine._shared.compiler, "_start", lambda: pytest.skip("no process is wanted"))
    monkeypatch.setattr(engine._shared.compiler, "_feed", lambda: None)
    engine.warm(strict=True)
    with pytest.raises(RecompileError, match="Block"):
        greedy(engine, [1, 2, 3], 1)
    engine.warm()
    with caplog.at_level(logging.WARNING):
        greedy(engine, [1, 2, 3], 1)
    assert engine.counters.late > 2 and len([r for r in caplog.records if "after warm-up" in r.message]) <= 1


def test_no_hook_runs_after_assembly(folder: Path, store: Path, compiled: Engine, monkeypatch: Any) -> None:
    runtime = dsv3rt.load(folder, compile="off", head="none", max_context=64)

    def called(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("pluggy was called")

    monkeypatch.setattr(pluggy._manager, "_multicall", called)
    monkeypatch.setattr(pluggy.PluginManager, "_hookexec", called)
    runtime.generate([1, 2, 3], max_tokens=2, temperature=0)
    greedy(compiled, PROMPT, 2)


FAMILIES: dict[str, dict[str, Any]] = {
    "deepseek_v3": {},
    "kimi_k2": {"model_type": "kimi_k2", "n_group": 1, "topk_group": 1},
    "glm4_moe_lite": {"model_type": "glm4_moe_lite", "n_group": 1, "topk_group": 1},
    "deepseek_v2": {
        "model_type": "deepseek_v2",
        "topk_method": "group_limited_greedy",
        "scoring_func": "softmax",
        "norm_topk_prob": False,
    },
}


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_one_graph(folder: Path, tmp_path: Path, family: str, native: bool) -> None:
    """Exporting allows no break, and no size that depends on data; the caches are written in place."""
    config = json.loads((folder / "config.json").read_text()) | FAMILIES[family]
    for name in ("model.safetensors", "generation_config.json"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "config.json").write_text(json.dumps(config))
    decoder = dsv3rt.load(tmp_path, compile="off", head="none", max_context=64).engine.decoder
    if not native:
        for part in decoder.modules():
            if hasattr(part, "native"):
                part.native = False
    caches = decoder.make_caches(64, CPU)
    for tokens in (1, 3):
        ids = torch.ones(1, tokens, dtype=torch.int64)
        with torch.no_grad():
            exported = torch.export.export(decoder, (ids, torch.arange(tokens)[None], caches), strict=False)
        assert len(list(exported.graph.nodes)) > 10


def test_layers_of_a_kind_share_a_graph(plain: Runtime) -> None:
    kinds = [fingerprint(_bare(block), 2) for block in plain.engine.decoder.model.layers]  # type: ignore[arg-type]
    assert len(set(kinds)) == 2 and len(set(kinds[1:])) == 1, "one dense block, and MoE blocks that are alike"


class _Scaled(torch.nn.Module):
    def __init__(self, part: torch.nn.Module, by: object) -> None:
        super().__init__()
        self.part = part
        self.by = by


def test_modules_of_the_same_parts_share_a_program(compiled: Engine) -> None:
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert compiled.graph(_Scaled(one, 2)) is compiled.graph(_Scaled(one, 2))
    assert len({compiled.graph(_Scaled(part, by)) for part in (one, other) for by in (2, 3)}) == 4
    assert compiled.graph(_Scaled(one, 2)) is not compiled.graph(_Scaled(one, 2), {0: 0})
    assert compiled.graph(_Scaled(one, [2])) is not compiled.graph(_Scaled(one, [2])), "a list may change"


def test_a_key_tells_apart_what_computes_differently(plain: Runtime) -> None:
    block = _bare(plain.engine.decoder.model.layers[1])  # type: ignore[arg-type]
    before = fingerprint(block, 2)
    other = unpack(pack(block))
    assert fingerprint(other, 2) == before, "the weights' values do not matter"
    other.mlp.gate.k += 1  # type: ignore[union-attr, operator]
    assert fingerprint(other, 2) != before
    other.mlp.gate.k = iter(())  # type: ignore[union-attr, assignment]
    with pytest.raises(UnkeyableError):
        fingerprint(other, 2)


def test_a_module_travels_without_its_weights(plain: Runtime) -> None:
    block = plain.engine.decoder.model.layers[1]
    data = pack(block)
    assert len(data) < 100_000 < sum(tensor.nbytes for tensor in block.parameters())


def test_unknown_modes_are_refused(plain: Runtime) -> None:
    with pytest.raises(UsageError, match="known: auto, full"):
        Engine(plain.engine.decoder, "fast")


def test_a_graph_serves_one_token_and_many(compiled: Engine, plain: Runtime) -> None:
    """Decoding, and verifying any number of drafts, are the same graph."""
    greedy(compiled, PROMPT, 1)
    graphs = set(compiled.counters.graphs)
    for count in (1, 2, 5, 16):
        mine, theirs = Sequence(compiled, 512, CPU), Sequence(plain.engine, 512, CPU)
        for sequence in (mine, theirs):
            sequence.extend(PROMPT)
        logits, expected = (sequence.extend([3] * count, last=None)[0] for sequence in (mine, theirs))
        assert (logits - expected).abs().max() <= 1e-3 * expected.std()
    assert compiled.counters.graphs == graphs and compiled.counters.uncompiled == 0

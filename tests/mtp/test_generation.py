"""Generating with the heads on random checkpoints of few tokens, where drafts are accepted by chance now and then."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dsv3rt_mtp import session as mtp_session
from dsv3rt_mtp.graphs import SampledAccept
from safetensors.torch import load_file, save_file

from dsv3rt import runtime as dsv3rt_runtime
from dsv3rt.errors import CheckpointError, UsageError
from dsv3rt.generate.draft_count import FixedCount
from dsv3rt.generate.sampling import Sampler, SamplingParams
from dsv3rt.runtime import Runtime
from dsv3rt.testing import chi_square

PROMPTS = ([1, 2, 3, 4, 5, 0, 1, 2], [3], [5, 4, 3, 2, 1, 0, 0, 0, 1])


def generate(runtime: Runtime, prompt: list[int], drafts: int | str, count: int = 40, **options: Any) -> Any:
    settings = {"temperature": 0, "ignore_eos": True, **options}
    return runtime.generate(prompt, max_tokens=count, draft_tokens=drafts, **settings)


@pytest.mark.parametrize("modules", [1, 2])
def test_greedy_text_does_not_depend_on_the_draft_count(modules: int, make_runtime: Callable[..., Runtime]) -> None:
    runtime = make_runtime(modules=modules, vocab_size=6)
    accepted = 0
    for prompt in PROMPTS:
        plain = generate(runtime, prompt, 0)
        for drafts in (1, 2, 4, "auto"):
            generation = generate(runtime, prompt, drafts)
            assert generation.token_ids == plain.token_ids, f"{drafts} drafts"
            accepted += generation.speculation.accepted
    assert accepted >= 10


def test_ngram_drafts_do_not_change_the_text(make_runtime: Callable[..., Runtime]) -> None:
    runtime = make_runtime(head="ngram", modules=0, vocab_size=6)
    accepted = 0
    for prompt in PROMPTS:
        plain = generate(runtime, prompt, 0, count=80)
        for drafts in (2, 6, "auto"):
            generation = generate(runtime, prompt, drafts, count=80)
            assert generation.token_ids == plain.token_ids, f"{drafts} drafts"
            accepted += generation.speculation.accepted
    assert accepted >= 10


@pytest.mark.parametrize("modules", [1, 2])
@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_caches_hold_what_plain_decoding_would_have_written(
    modules: int, penalty: float, make_runtime: Callable[..., Runtime]
) -> None:
    """penalty 1 goes through the fused step where there is one module, another one through separate steps."""
    runtime = make_runtime(modules=modules, vocab_size=6)
    generation = generate(runtime, [1, 2, 3], 3, repetition_penalty=penalty)
    assert generation.speculation.accepted > 0
    sequence = runtime.conversations.newest.sequence
    assert sequence is not None and sequence.token_ids[:3] == [1, 2, 3]
    tokens, used = sequence.token_ids, sequence.computed
    fresh = runtime.engine.decoder.make_caches(used, torch.device("cpu"))
    with torch.inference_mode():
        runtime.engine.decoder.hidden(torch.tensor([tokens]), torch.arange(used)[None], fresh)
    for mine, theirs in zip(sequence.caches, fresh, strict=True):
        torch.testing.assert_close(mine[0][:, :used], theirs[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("modules", [1, 2])
def test_the_heads_rows_are_those_of_reading_the_text_afresh(
    modules: int, make_runtime: Callable[..., Runtime]
) -> None:
    runtime = make_runtime(modules=modules, vocab_size=6)
    for prompt, answer in (([1, 2, 3, 4], 30), ([1, 2, 3, 0, 5], 25), ([1, 2, 3, 0, 5], 12)):
        generate(runtime, prompt, 3, count=answer)
    speculator = runtime.conversations.newest.speculator
    assert speculator is not None
    session: Any = speculator.session
    ids = [*speculator.sequence.token_ids, session._next_ids[-1]]
    rows = len(session._next_ids)
    assert session._next_ids == ids[1 : rows + 1]
    decoder, head = runtime.engine.decoder, runtime.head
    caches = head.make_caches(rows, torch.device("cpu"))
    with torch.inference_mode():
        positions = torch.arange(rows)[None]
        hidden = decoder.hidden(torch.tensor([ids[:rows]]), positions, decoder.make_caches(rows, torch.device("cpu")))
        normed = head.norm(hidden)
        for depth in range(modules):
            known = rows - depth
            normed = normed[:, :known]
            after = torch.tensor([session._next_ids[depth:]])
            normed = head.advance(depth, after, normed, positions[:, :known], caches[depth])
    final = session._final
    assert final >= rows - 4
    for depth in range(modules):
        torch.testing.assert_close(
            session._caches[depth][0][:, :final], caches[depth][0][:, :final], rtol=1e-4, atol=1e-5
        )


def test_log_probabilities_and_penalties_with_drafts(make_runtime: Callable[..., Runtime]) -> None:
    runtime = make_runtime(vocab_size=6)
    for options in ({"repetition_penalty": 1.3}, {}):
        plain = generate(runtime, [1, 2, 3], 0, logprobs=3, **options)
        drafted = generate(runtime, [1, 2, 3], 3, logprobs=3, **options)
        assert drafted.speculation.accepted > 0
        assert [entry.token_id for entry in drafted.logprobs] == [entry.token_id for entry in plain.logprobs]
        values = [entry.logprob for entry in drafted.logprobs]
        assert values == pytest.approx([entry.logprob for entry in plain.logprobs], abs=1e-4)


def test_an_answer_may_end_in_the_middle_of_a_step(make_runtime: Callable[..., Runtime]) -> None:
    runtime = make_runtime(vocab_size=6)
    whole = generate(runtime, [1, 2, 3], 0, count=30).token_ids
    for count in range(1, 12):
        assert generate(runtime, [1, 2, 3], 4, count=count).token_ids == whole[:count]


RULES = [
    SamplingParams(temperature=2.0, top_p=1.0),  # in separate steps; the others are fused
    SamplingParams(temperature=4.0, top_p=0.9),
    SamplingParams(temperature=2.0, top_p=1.0, top_k=2),
    SamplingParams(temperature=4.0, top_p=0.999, min_p=0.2),
]


@pytest.mark.parametrize("params", RULES, ids=["plain", "top-p", "top-k", "min-p"])
def test_text_drawn_with_drafts_has_the_models_distribution(
    params: SamplingParams, make_runtime: Callable[..., Runtime]
) -> None:
    """Three tokens of 600 answers, the later two from a step that verifies two drafts drawn by the module."""
    runtime = make_runtime(vocab_size=3)
    prompt = [1, 2, 0]
    sampler = Sampler(replace(params, seed=2))
    expected: dict[tuple[int, ...], float] = {}
    for outcome in itertools.product(range(3), repeat=3):
        probability = 1.0
        for i, token in enumerate(outcome):
            probability *= float(sampler.probabilities(runtime.logits([*prompt, *outcome[:i]])[-1])[token])
        expected[outcome] = probability
    speculator = runtime._new_conversation().speculator
    assert speculator is not None
    counts: Counter[tuple[int, ...]] = Counter()
    drafted = accepted = 0
    for _ in range(600):
        cached = speculator.reuse(prompt)
        steps = speculator.steps(speculator.read(prompt[cached:]), sampler, FixedCount(2))
        tokens: list[int] = []
        while len(tokens) < 3:
            tokens.extend(settled.token_id for settled in next(steps))
        counts[tuple(tokens[:3])] += 1
        result = speculator.result()
        drafted, accepted = drafted + result.drafted, accepted + result.accepted
    assert 0 < accepted < drafted
    session: Any = speculator.session
    assert ((SampledAccept, 1) in session._accepts) == (params.top_p < 1 or params.top_k > 0)
    assert session._apart == 0
    statistic, freedom = chi_square(counts, expected)
    assert freedom >= 6 and statistic < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("vocab_size", [6, 300])
def test_a_seed_means_a_text_whether_or_not_one_graph_makes_all_drafts(
    vocab_size: int, make_runtime: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 300 tokens the shortlists hold too few now and then, and the numbers drawn for that step are lost."""
    texts = []
    for uses in (0, 10**9):
        monkeypatch.setattr(mtp_session, "COMPILE_AFTER", uses)
        runtime = make_runtime(vocab_size=vocab_size)
        options: dict[str, Any] = {"temperature": 2.0, "top_p": 0.9, "seed": 4}
        texts.append([generate(runtime, [1, 2, 3], 3, **options).token_ids for _ in range(2)])
        conversation: Any = runtime.conversations.newest
        session = conversation.speculator.session
        assert ((SampledAccept, 3) in session._fused) == (uses == 0)
    assert texts[0] == texts[1] and texts[0][0] == texts[0][1]


def damage(folder: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a checkpoint in one file, with its tensors changed."""
    shutil.copytree(folder, target)
    file = next(target.glob("*.safetensors"))
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file)
    index = target / "model.safetensors.index.json"
    if index.exists():
        raw = json.loads(index.read_text())
        raw["weight_map"] = {name: file.name for name in tensors}
        index.write_text(json.dumps(raw))
    return target


def drop_modules(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("model.layers.2.")]:
        del tensors[name]


def misshape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.2.eh_proj.weight"] = torch.zeros(3, 5)


def spoil(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.2.eh_proj.weight"][0, 0] = float("nan")


@pytest.mark.parametrize("change", [drop_modules, misshape, spoil])
def test_missing_or_damaged_modules_cost_one_line(
    change: Callable[[dict[str, torch.Tensor]], None],
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = make_checkpoint()
    folder = damage(whole, tmp_path / "damaged", change)
    runtime = dsv3rt_runtime.load(folder, compile="off", dtype="float32")
    lines = [line for line in capsys.readouterr().err.splitlines() if "draft" in line]
    assert len(lines) == 1 and "model.layers.2" in lines[0]
    assert runtime.plan.head is None
    plain = dsv3rt_runtime.load(whole, compile="off", dtype="float32", head="none")
    assert generate(runtime, [1, 2], "auto").token_ids == generate(plain, [1, 2], 0).token_ids


@pytest.mark.parametrize("what", ["truncated", "missing"])
def test_a_damaged_shard_of_modules_alone_costs_one_line(
    what: str, make_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = make_checkpoint()
    folder = damage(whole, tmp_path / "damaged", drop_modules)
    file, shard = folder / "decoder.safetensors", folder / "modules.safetensors"
    next(folder.glob("*.safetensors")).rename(file)
    tensors = load_file(next(whole.glob("*.safetensors")))
    modules = {name: tensor for name, tensor in tensors.items() if name.startswith("model.layers.2.")}
    save_file(modules, shard)
    places = {name: (shard if name in modules else file).name for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    shard.write_bytes(shard.read_bytes()[:-100])
    if what == "missing":
        shard.unlink()
    runtime = dsv3rt_runtime.load(folder, compile="off", dtype="float32")
    lines = [line for line in capsys.readouterr().err.splitlines() if "draft" in line]
    assert len(lines) == 1 and what in lines[0] and shard.name in lines[0]
    assert runtime.plan.head is None
    assert len(generate(runtime, [1, 2], "auto").token_ids) == 40


def test_weights_that_are_no_numbers_are_never_believed(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:  # too many to be looked at when loading
        for name, tensor in tensors.items():
            if name.startswith("model.layers.2.mlp.experts."):
                tensor.fill_(float("nan"))

    whole = make_checkpoint()
    runtime = dsv3rt_runtime.load(damage(whole, tmp_path / "nan", spoil), compile="off", dtype="float32")
    for temperature in (0, 1.0):
        generation = generate(runtime, [1, 2], 2, temperature=temperature, seed=1)
        assert len(generation.token_ids) == 40
    assert generate(runtime, [1, 2], 2).token_ids == generate(runtime, [1, 2], 0).token_ids


def test_damage_to_the_main_model_is_still_an_error(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.0.mlp.up_proj.weight"]

    folder = damage(make_checkpoint(), tmp_path / "damaged", change)
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.mlp\.up_proj"):
        dsv3rt_runtime.load(folder, compile="off", dtype="float32")


def test_a_checkpoint_without_modules_says_so_and_generates(
    make_runtime: Callable[..., Runtime], capsys: pytest.CaptureFixture[str]
) -> None:
    runtime = make_runtime(modules=0, head="mtp")
    assert "no MTP modules" in capsys.readouterr().err
    assert len(generate(runtime, [1], "auto", count=3).token_ids) == 3


@pytest.mark.parametrize("head", ["mtp:max_drafts=0", "mtp:max_drafts=x", "mtp:depth=2", "ngram:longest=0"])
def test_wrong_options_are_one_line(head: str, make_runtime: Callable[..., Runtime]) -> None:
    with pytest.raises(UsageError, match=r"max_drafts|depth|longest"):
        make_runtime(head=head)


@pytest.mark.parametrize("drafts", ["many", -1, True, 1.5])
def test_a_wrong_draft_count_is_one_line(drafts: Any, make_runtime: Callable[..., Runtime]) -> None:
    with pytest.raises(UsageError, match="draft_tokens"):
        generate(make_runtime(), [1], drafts, count=1)

"""Evaluation against sums done by hand on the same logits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from dsv3rt_train import export
from dsv3rt_train.data import tokenizer
from dsv3rt_train.eval import measures, records
from dsv3rt_train.model.build import assemble, initialise
from train_cases import TINY

from dsv3rt.errors import UserError
from dsv3rt.plugin_manager import Plugins
from dsv3rt.runtime import Runtime, load

TEXT = "Bees make honey and cows eat grass, but a fox eats neither of them. "


@pytest.fixture(scope="module")
def folder(plugins: Plugins, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dsv3rt.config import ModelConfig

    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer.save(tokenizer.train(iter([TEXT] * 3), 310), folder, max_length=128)
    raw = {**TINY, "vocab_size": 310}
    model = assemble(ModelConfig.from_dict(raw), plugins)
    initialise(model, 3)
    export.write(model, folder, raw, fp8=False)
    return folder


@pytest.fixture(scope="module")
def runtime(folder: Path, plugins: Plugins) -> Runtime:
    return load(folder, plugins=plugins, compile="off", head="none", dtype="float32")


def _tick() -> None:
    """Nobody is looking."""


def test_bits_per_byte_counts_every_token_once(runtime: Runtime) -> None:
    text = TEXT * 2
    ids = runtime.encode(text)
    scores = runtime.logits(ids)[:-1].log_softmax(-1)
    nats = -sum(float(scores[i, token]) for i, token in enumerate(ids[1:]))
    whole = measures.bits_per_byte(runtime, [text], window=128, tick=_tick)
    assert whole["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-5)
    assert whole["tokens"] == len(ids) - 1
    cut = measures.bits_per_byte(runtime, [text, text], window=16, tick=_tick)
    assert cut["tokens"] == 2 * (len(ids) - 1)
    assert cut["perplexity"] == pytest.approx(whole["perplexity"], rel=0.3)


def test_choices_pick_the_likeliest_ending(runtime: Runtime) -> None:
    endings = [" honey", " grass and a fox", " them"]
    context = "Bees make"
    scores = []
    for ending in endings:
        ids, before = runtime.encode(context + ending), runtime.encode(context)
        assert ids[: len(before)] == before
        logits = runtime.logits(ids).log_softmax(-1)
        scores.append(sum(float(logits[i - 1, ids[i]]) for i in range(len(before), len(ids))))
    best = scores.index(max(scores))
    for right in range(3):
        result = measures.choices(runtime, [records.Choice(context, endings, right)], tick=_tick)
        assert result["accuracy"] == (right == best)


def test_a_plan_does_not_differ_from_itself(runtime: Runtime, folder: Path, plugins: Plugins) -> None:
    same = measures.compare(runtime, runtime, [TEXT], window=64, tick=_tick)
    assert same["kl"] == pytest.approx(0, abs=1e-9) and same["top1_agreement"] == 1.0
    assert same["perplexity"] == same["perplexity_against"]
    rough = load(folder, plugins=plugins, compile="off", head="none", dtype="bfloat16")
    other = measures.compare(runtime, rough, [TEXT], window=64, tick=_tick)
    assert 0 < other["kl"] < 0.1 and other["top1_agreement"] > 0.5


def test_exact_match_compares_greedy_answers(runtime: Runtime) -> None:
    messages = [{"role": "user", "content": "Bees make"}]
    said = runtime.chat(messages, max_tokens=6, temperature=0.0).text
    items = [records.Question(messages, said.upper(), False), records.Question(messages, "something else", False)]
    result = measures.exact_match(runtime, items, max_tokens=6, tick=_tick)
    assert result["exact_match"] == 0.5
    assert result["wrong"] == [{"asked": "Bees make", "got": said, "wanted": "something else"}]


@pytest.mark.parametrize(
    ("record", "context", "endings", "right"),
    [
        ({"ctx": "A fox", "endings": ["runs", "sings"], "label": "1"}, "A fox", [" runs", " sings"], 1),
        (
            {"question": "Q?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"},
            "Question: Q?\nAnswer:",
            [" x", " y"],
            1,
        ),
        (
            {"question": {"stem": "Q?", "choices": [{"text": "x", "label": "1"}]}, "answerKey": "1"},
            "Question: Q?\nAnswer:",
            [" x"],
            0,
        ),
        ({"question": "Q?", "choices": ["x", "y", "z"], "answer": "C"}, "Question: Q?\nAnswer:", [" x", " y", " z"], 2),
        ({"question": "Q?", "choices": ["x", "y"], "answer": 0}, "Question: Q?\nAnswer:", [" x", " y"], 0),
    ],
)
def test_choice_formats(tmp_path: Path, record: Any, context: str, endings: list[str], right: int) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    assert list(records.read_choices([tmp_path / "a.jsonl"])) == [records.Choice(context, endings, right)]


def test_question_formats(tmp_path: Path) -> None:
    lines: list[Any] = [
        {"question": "How many?", "answer": "6 * 7 = 42\n#### 42"},
        {"question": "Who?", "answer": "Anna"},
        {"question": "How far?", "answer": "1,200"},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    got = list(records.read_questions([tmp_path / "a.jsonl"]))
    assert [(q.answer, q.number) for q in got] == [
        ("42", True),
        ("Anna", False),
        ("1,200", True),
        ("Hello.", False),
    ]
    assert records.last_number("about 1,234.5 or -7 of 8") == "8"
    assert records.last_number("it is 1,234") == "1234"
    assert records.normalise(" The  Fox. ") == "the fox"


def test_unknown_items_name_their_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"ctx": "a", "endings": ["x"], "label": 0}\n{"ctx": "a", "endings": [], "label": 0}\n'
    )
    with pytest.raises(UserError, match=r"a\.jsonl:2"):
        list(records.read_choices([tmp_path / "a.jsonl"]))
    with pytest.raises(UserError, match=r"a\.jsonl:1"):
        list(records.read_questions([tmp_path / "a.jsonl"]))


def test_repetition_is_counted() -> None:
    texts = ["A fox ran home. It was glad.", "A dog ate. It was glad. It was glad."]
    got = measures.repetition(texts)
    assert got["repeated_sentences"] == pytest.approx(3 / 5)
    assert got["looping"] == 0.5
    grams = [tuple(w[i : i + 3]) for w in map(str.split, texts) for i in range(len(w) - 2)]
    assert got["distinct_3"] == len(set(grams)) / len(grams) < 1


def test_samples_follow_from_the_seed(runtime: Runtime) -> None:
    items = [records.Question([{"role": "user", "content": "Bees"}], "", False)] * 2
    one, two = (measures.samples(runtime, items, max_tokens=4, seed=1, tick=_tick) for _ in range(2))
    assert one == two and one["items"] == 2 and one["samples"][0]["asked"] == "Bees"

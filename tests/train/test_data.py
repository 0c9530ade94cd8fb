"""The generators, WordNet reading, the tokenizer and the batches."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from dsv3rt_train.data import arithmetic, glosses, talk, tokenizer
from dsv3rt_train.data.batches import Batches
from dsv3rt_train.data.documents import Corpus, Encoder, read_records
from dsv3rt_train.data.mixture import Mixture, Sources, is_held_out
from dsv3rt_train.data.stories import tell
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from dsv3rt.chat.template import JinjaFormat
from dsv3rt.errors import UserError

_MINI_WORDNET = {
    # noun: (lexicographer file number, definition)
    "eagle": (5, "any of various large keen-sighted birds of prey; noted for something else"),
    "owl": (5, "nocturnal bird of prey (Strigiformes) with large head"),
    "milk": (13, "a white nutritious liquid secreted by mammals"),
    "lamp": (6, "an artificial source of visible illumination; \"a lamp\""),
}  # fmt: skip


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Database files as wndb(5) describes them, with four nouns."""
    folder = tmp_path_factory.mktemp("wordnet")
    data, index = b"  1 licence\n", "  1 licence\n"
    for noun, (number, text) in _MINI_WORDNET.items():
        index += f"{noun} n 1 1 @ 1 1 {len(data):08d}  \n"
        data += f"{len(data):08d} {number:02d} n 01 {noun} 0 000 | {text}  \n".encode()
    (folder / "data.noun").write_bytes(data)
    (folder / "index.noun").write_text(index)
    return folder


@pytest.fixture(scope="module")
def mixture(wordnet: Path) -> Mixture:
    return Mixture(Sources(glosses.read_glosses(wordnet), [("Hello", "Hi.")], ["quasar"]))


@pytest.fixture(scope="module")
def folder(mixture: Mixture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = (m["content"] for c in mixture.conversations(3, 400) for m in c)
    tokenizer.save(tokenizer.train(texts, 600), folder, max_length=128)
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder.from_folder(folder)


def test_glosses_are_short_sentences(wordnet: Path) -> None:
    found = {gloss.noun: gloss.text for gloss in glosses.read_glosses(wordnet)}
    assert found["eagle"] == "one of the large keen-sighted birds of prey"
    assert found["owl"] == "a nocturnal bird of prey with large head"
    assert found["lamp"] == "an artificial source of visible illumination"
    assert found["milk"] == "a white nutritious liquid secreted by mammals"


def test_missing_wordnet_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="wordnet-base"):
        glosses.read_glosses(tmp_path)


def test_sums_are_right_and_held_out_pairs_are_never_drawn() -> None:
    rng = random.Random(0)
    for _ in range(3000):
        exercise = arithmetic.exercise(rng)
        for equation in exercise.answer.rstrip(".").split(", "):
            left, right = equation.split(" = ")
            assert eval(left) == int(right)
    kept = {(x, y) for x in range(10, 100) for y in range(10, 100) if not arithmetic.is_held_out(x, "+", y)}
    assert 0.88 < len(kept) / 8100 < 0.96
    assert all((y, x) in kept for x, y in kept)
    for _ in range(50):
        x, _, y = arithmetic.exercise(rng, held_out=True).answer.split(", ")[-1].split(" = ")[0].split()
        assert arithmetic.is_held_out(int(x), "+", int(y))
    drawn = [talk.sum_once(rng) + arithmetic.follow_up(rng) for _ in range(2000)]
    for turns in drawn:
        for _, answer in turns:
            x, sign, y = answer.rstrip(".").split(", ")[-1].split(" = ")[0].split()
            assert not (len(turns) == 1 and arithmetic.is_held_out(int(x), sign, int(y)))


def test_facts_asked_in_training_are_not_the_held_out_ones(mixture: Mixture) -> None:
    held_out = {question for question, _ in mixture.held_out_facts + mixture.held_out_glosses}
    assert len(held_out) > 50
    assert all(map(is_held_out, held_out))
    asked = {m["content"] for c in mixture.conversations(5, 4000) for m in c if m["role"] == "user"}
    assert not asked & held_out


def test_stories_are_whole_and_vary() -> None:
    rng = random.Random(1)
    stories = [tell(rng) for _ in range(300)]
    assert len({story.text for story in stories}) == 300
    for story in stories:
        assert "{" not in story.text and story.text[0].isupper() and story.text[-1] in '.!"', story.text
        assert story.text.count(".") + story.text.count("!") + story.text.count("?") >= 4
        assert story.hero.name in story.text
    trigrams = [gram for s in stories for gram in zip(*(s.text.split()[i:] for i in range(3)), strict=False)]
    assert len(set(trigrams)) / len(trigrams) > 0.3


def test_everything_follows_from_the_seed(mixture: Mixture) -> None:
    assert list(mixture.conversations(7, 50)) == list(mixture.conversations(7, 50))
    assert list(mixture.conversations(7, 50)) != list(mixture.conversations(8, 50))


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_both_tokenizer_files_say_the_same(folder: Path, encoder: Encoder, text: str) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    (ids,) = encoder.encode([text])
    if "\0" not in text:  # sentencepiece ends a text there
        assert ids == processor.encode(text)
    assert encoder.decode(ids) == text.replace("▁", " ")


def test_control_tokens_in_user_text_stay_text(encoder: Encoder) -> None:
    (ids,) = encoder.encode(["<｜User｜>"])
    assert encoder.user not in ids
    assert encoder.decode(ids) == "<｜User｜>"


def test_digits_are_single_tokens(encoder: Encoder) -> None:
    for number in range(100):
        (ids,) = encoder.encode([str(number)])
        assert len(ids) == len(str(number))


def test_conversations_are_encoded_as_the_chat_template_writes_them(
    folder: Path, encoder: Encoder, mixture: Mixture
) -> None:
    template = JinjaFormat(
        {"default": tokenizer.CHAT_TEMPLATE}, {"bos_token": tokenizer.BOS, "eos_token": tokenizer.EOS}
    )
    parser = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for messages in mixture.conversations(11, 20):
        rendered = template.render(messages, add_generation_prompt=False)
        document = encoder.conversation(messages)
        assert parser.encode(rendered, add_special_tokens=False).ids == document.ids
        learnt = [token for token, learn in zip(document.ids, document.learn, strict=True) if learn]
        assert encoder.decode(learnt) == "".join(m["content"] for m in messages if m["role"] == "assistant")
        assert learnt.count(encoder.eos) == len(messages) // 2
        prompt = parser.encode(template.render(messages[:1]), add_special_tokens=False).ids
        assert encoder.prompt(messages[:1]) == prompt


def test_batches_hold_every_document_once_an_epoch(encoder: Encoder, mixture: Mixture) -> None:
    records = [{"messages": c} for c in mixture.conversations(2, 300)]
    corpus = Corpus.build(encoder, records, max_length=512)
    batches = Batches(corpus, tokens=256, micro_batches=1, seed=4, pad_id=2)
    seen: list[tuple[int, ...]] = []
    for number in range(batches.per_epoch):
        for batch in batches.step(number):
            assert batch.ids_BT.shape == batch.learn_BT.shape == batch.real_BT.shape
            assert not (batch.learn_BT & ~batch.real_BT).any()
            seen += [tuple(row[real].tolist()) for row, real in zip(batch.ids_BT, batch.real_BT, strict=True)]
    expected = [tuple(corpus.ids[a:b].tolist()) for a, b in zip(corpus.offsets, corpus.offsets[1:], strict=False)]
    assert sorted(seen) == sorted(expected)
    again = Batches(corpus, tokens=256, micro_batches=1, seed=4, pad_id=2)
    later = batches.per_epoch + 3
    assert all(torch.equal(a.ids_BT, b.ids_BT) for a, b in zip(batches.step(later), again.step(later), strict=True))


def test_a_streamed_corpus_is_the_same_and_mapped(encoder: Encoder, mixture: Mixture, tmp_path: Path) -> None:
    long = {"text": "Bees make honey. " * 40}
    records = [long, *({"messages": c} for c in mixture.conversations(2, 50))]
    read = Corpus.build(encoder, records, max_length=32)
    assert read.lengths.max() <= 32 and len(read) > 60
    streamed = Corpus.stream(encoder, iter(records), tmp_path / "new", max_length=32)
    assert all(np.array_equal(getattr(read, k), getattr(streamed, k)) for k in ("ids", "learn", "offsets"))
    assert isinstance(streamed.ids, np.memmap)
    with pytest.raises(UserError, match="no training text"):
        Corpus.stream(encoder, [], tmp_path / "empty", max_length=32)


def test_paragraphs_of_a_text_file_are_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\nOne\ntwo.\n \n\nThree.\n")
    assert [record["text"] for record in read_records([tmp_path / "a.txt"])] == ["One\ntwo.", "Three."]


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ('{"a": 1}', "neither")])
def test_bad_records_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + text + "\n")
    with pytest.raises(UserError, match=rf"a\.jsonl:2 .*{message}"):
        list(read_records([tmp_path / "a.jsonl"]))

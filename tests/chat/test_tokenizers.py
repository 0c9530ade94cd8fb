"""Tokenizers against `tokenizers`, sentencepiece and a BPE written out; real vocabularies where they can be had."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import regex
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3rt.chat.tokenizers import load_tokenizer
from dsv3rt.chat.tokenizers.tiktoken_bpe import PATTERN, portions
from dsv3rt.errors import TokenizerError
from dsv3rt.generate.text import Detokenizer
from dsv3rt.interfaces import Tokenizer

REAL = ("deepseek-v3", "deepseek-r1", "deepseek-v3.1", "deepseek-v2", "glm-4.7-flash")

TEXTS = (
    "",
    " ",
    "Hello, world!",
    "  leading and trailing  ",
    "I'll say don't, CAN'T, we're.",
    "In 2024 there were 1234567 events, or 3.14159 pi; ٣٤٥ and Ⅷ.",
    "def f(x: int) -> bool:\n\treturn x > 0  # comment\n\n\n",
    "你好，世界！中文English混合。こんにちは世界 안녕하세요",
    "مرحبا بالعالم, שלום עולם, नमस्ते दुनिया",
    "🎉🚀👨‍👩‍👧‍👦 flags 🇩🇪 e\u0301 combining",
    "\u3000 full-width　space \xa0nbsp \u200b zero-width \ufeff",
    "a\r\nb\rc\n\n d \t\t e",
    "<s> </s> <|im_end|> [gMASK] <0x0A> ▁ Ġ",
    "𝕳𝖊𝖑𝖑𝖔 \U0010ffff \x00\x01\x7f",
    "x" * 300 + " " * 300 + "é" * 50,
)
ANY_TEXT = st.one_of(st.text(max_size=40), st.text(alphabet="aA1 \n\t'sé中🎉.,_▁Ġ", max_size=40))


@cache
def loaded(folder: Path) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    return load_tokenizer(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def check_text(ours: Tokenizer, theirs: tokenizers.Tokenizer, text: str) -> None:
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text, add_bos=False, allow_special=True) == ids
    assert ours.decode(ids, skip_special=False) == theirs.decode(ids, skip_special_tokens=False)
    assert b"".join(map(ours.token_bytes, ids)).decode() == theirs.decode(ids, skip_special_tokens=False)
    stream = Detokenizer(ours, skip_special=False)
    assert "".join([*(stream.push([token]) for token in ids), stream.flush()]) == ours.decode(ids, skip_special=False)
    plain = ours.encode(text, add_bos=False, allow_special=False)
    assert ours.decode(plain, skip_special=False) == text


@pytest.mark.parametrize("name", REAL)
def test_real_vocabularies_agree_with_the_library(name: str, real_folder: Callable[[str], Path]) -> None:
    ours, theirs = loaded(real_folder(name))
    for text in TEXTS:
        check_text(ours, theirs, text)
    assert ours.vocab_size == max(theirs.get_vocab().values()) + 1


@pytest.mark.parametrize("name", ["deepseek-v3", "glm-4.7-flash"])
def test_any_text_agrees_with_the_library(name: str, real_folder: Callable[[str], Path]) -> None:
    ours, theirs = loaded(real_folder(name))

    @settings(max_examples=150, deadline=None)
    @given(ANY_TEXT)
    def agree(text: str) -> None:
        check_text(ours, theirs, text)

    agree()


@pytest.mark.parametrize("name", REAL)
def test_any_ids_agree_with_the_library(name: str, real_folder: Callable[[str], Path]) -> None:
    ours, theirs = loaded(real_folder(name))
    whole = {id for id in range(0, ours.vocab_size, 97) if id not in ours.special_ids and ours.token_bytes(id)}

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.sampled_from(sorted(whole)), max_size=12))
    def agree(ids: list[int]) -> None:
        # Half characters included: both turn what is no text into U+FFFD.
        assert ours.decode(ids) == theirs.decode(ids)

    agree()


def test_deepseek_rules(real_folder: Callable[[str], Path]) -> None:
    ours, _ = loaded(real_folder("deepseek-v3"))
    assert ours.add_bos and ours.bos_id == 0 and ours.eos_ids == {1} and not ours.strips_leading_space
    assert ours.encode("Hi", add_bos=True, allow_special=False) == [
        0,
        *ours.encode("Hi", add_bos=False, allow_special=False),
    ]
    assert ours.decode([0, *ours.encode(" Hi", add_bos=False, allow_special=False), 1]) == " Hi"
    assert 0 in ours.special_ids and ours.token_bytes(0) == "<｜begin▁of▁sentence｜>".encode()


@pytest.mark.parametrize("marker", ["<｜User｜>", "<think>", "<｜end▁of▁sentence｜>", "<｜tool▁sep｜>"])
def test_control_tokens_in_plain_text_stay_text(marker: str, real_folder: Callable[[str], Path]) -> None:
    ours, theirs = loaded(real_folder("deepseek-r1"))
    control = theirs.token_to_id(marker)
    text = f"say {marker} please"
    assert control in ours.encode(text, add_bos=False, allow_special=True)
    ids = ours.encode(text, add_bos=False, allow_special=False)
    assert control not in ids and ours.decode(ids, skip_special=False) == text


def test_reasoning_tags_are_always_shown(real_folder: Callable[[str], Path]) -> None:
    for name in ("deepseek-r1", "deepseek-v3.1", "glm-4.7-flash"):
        ours, theirs = loaded(real_folder(name))
        assert ours.decode([theirs.token_to_id("<think>"), theirs.token_to_id("</think>")]) == "<think></think>"


def test_glm_has_no_bos_and_takes_ends_from_the_configs(real_folder: Callable[[str], Path], tmp_path: Path) -> None:
    source = real_folder("glm-4.7-flash")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).symlink_to(source / file)
    (tmp_path / "config.json").write_text('{"eos_token_id": [154820, 154827], "vocab_size": 154880}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 154829}')
    ours = load_tokenizer(tmp_path)
    assert not ours.add_bos and ours.bos_id is None
    assert ours.eos_ids == {154820, 154827, 154829}
    assert ours.token_bytes(154879) == b"" and ours.decode([154879, 10**9]) == ""


@cache
def small_fast() -> tokenizers.Tokenizer:
    """A byte-level BPE trained on the texts above."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def test_bos_comes_from_the_post_processor_where_the_config_is_silent(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer.from_str(small_fast().to_str())
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": {"content": "</s>"}}')
    ours = load_tokenizer(tmp_path)
    assert ours.add_bos and ours.bos_id == 0 and ours.eos_ids == {1}
    assert 0 not in ours.encode("x", add_bos=False, allow_special=True)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "add_bos_token": false}')
    assert not load_tokenizer(tmp_path).add_bos


SP_TEXTS = [text.replace("\x00", "") for text in TEXTS if text.strip()]


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SP_TEXTS * 3),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder


def test_sentencepiece_agrees_with_the_library(sentencepiece_folder: Path) -> None:
    ours = load_tokenizer(sentencepiece_folder)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_folder / "tokenizer.model"))
    assert ours.strips_leading_space and ours.add_bos and ours.bos_id == 1 and ours.eos_ids == {2}
    assert ours.encode("a b", add_bos=True, allow_special=False) == [1, *theirs.encode("a b")]

    @settings(max_examples=200, deadline=None)
    @given(st.one_of(st.sampled_from(SP_TEXTS), ANY_TEXT.filter(lambda text: "\x00" not in text)))
    def agree(text: str) -> None:
        ids = theirs.encode(text)
        assert ours.encode(text, add_bos=False, allow_special=False) == ids
        assert ours.decode(ids) == theirs.decode(ids)
        stream = Detokenizer(ours)
        assert "".join([*(stream.push([token]) for token in [1, *ids]), stream.flush()]) == theirs.decode(ids)

    agree()


def test_sentencepiece_control_tokens(sentencepiece_folder: Path) -> None:
    ours = load_tokenizer(sentencepiece_folder)
    assert {1, 2}.isdisjoint(ours.encode("<s>Hello</s>", add_bos=False, allow_special=False))
    ids = ours.encode("<s>Hello</s>Hello", add_bos=False, allow_special=True)
    assert ids[0] == 1 and ids.count(2) == 1
    assert ours.decode(ids, skip_special=False) == "<s>Hello</s>Hello"


@pytest.fixture(scope="module")
def tiktoken_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary in Moonshot's format: the 256 bytes, then merges that the texts above ask for."""
    folder = tmp_path_factory.mktemp("tiktoken")
    tokens = [bytes([byte]) for byte in range(256)]
    words = [piece.encode() for text in TEXTS for piece in regex.findall(PATTERN, text, flags=regex.V1)]
    for size in (2, 3, 4):
        counts: dict[bytes, int] = {}
        for word in words:
            for start in range(len(word) - size + 1):
                counts[word[start : start + size]] = counts.get(word[start : start + size], 0) + 1
        tokens += sorted(token for token, count in counts.items() if count > 1 and token not in tokens)[:150]
    lines = [base64.b64encode(token) + b" " + str(rank).encode() for rank, token in enumerate(tokens)]
    (folder / "tiktoken.model").write_bytes(b"\n".join(lines) + b"\n")
    base = len(tokens)
    added = {
        str(base): {"content": "[BOS]", "special": True},
        str(base + 1): {"content": "[EOS]", "special": True},
        str(base + 2): {"content": "<|im_end|>", "special": True},
        str(base + 5): {"content": "<think>", "special": False},
    }
    config = {"bos_token": "[BOS]", "eos_token": "[EOS]", "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"vocab_size": base + 256, "eos_token_id": base + 2}))
    return folder


def slow_bpe(ranks: dict[bytes, int], text: str) -> list[int]:
    """The pattern by the `regex` package, then the lowest-ranked neighbours merged until none are left."""
    ids = []
    for word in regex.findall(PATTERN, text, flags=regex.V1):
        parts = [bytes([byte]) for byte in word.encode()]
        while True:
            pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks]
            if not pairs:
                break
            _, index = min(pairs)
            parts[index : index + 2] = [parts[index] + parts[index + 1]]
        ids += [ranks[part] for part in parts]
    return ids


# of characters without a meaning yet, each library has tables of its own
ASSIGNED_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=40)


def test_tiktoken_agrees_with_bpe_written_out(tiktoken_folder: Path) -> None:
    ours = load_tokenizer(tiktoken_folder)
    lines = (tiktoken_folder / "tiktoken.model").read_bytes().split()
    ranks = {base64.b64decode(token): int(rank) for token, rank in zip(lines[::2], lines[1::2], strict=True)}

    @settings(max_examples=200, deadline=None)
    @given(st.one_of(st.sampled_from(TEXTS), ASSIGNED_TEXT))
    def agree(text: str) -> None:
        ids = ours.encode(text, add_bos=False, allow_special=False)
        assert ids == slow_bpe(ranks, text)
        assert ours.decode(ids) == text

    agree()


def test_tiktoken_control_tokens(tiktoken_folder: Path) -> None:
    ours = load_tokenizer(tiktoken_folder)
    base = ours.vocab_size - 256
    assert ours.bos_id == base and ours.eos_ids == {base + 1, base + 2} and not ours.add_bos
    assert ours.encode("[BOS]a<|im_end|>", add_bos=False, allow_special=True) == [base, ord("a"), base + 2]
    assert max(ours.encode("[BOS]a<|im_end|>", add_bos=False, allow_special=False)) < base
    assert ours.token_bytes(base + 9) == f"<|reserved_token_{base + 9}|>".encode()
    assert ours.decode([base, base + 5, ord("a"), base + 2]) == "<think>a"
    assert ours.token_bytes(ours.vocab_size) == b"" and ours.token_bytes(2**70) == b""


@pytest.mark.parametrize("text, words", [
    ("中文English混合", ["中文", "English", "混合"]),
    ("北京市 Pascal", ["北京市", " Pascal"]),
    ("HelloWorld's 12345", ["Hello", "World's", " ", "123", "45"]),
    ("a  b\n\n c", ["a", " ", " b", "\n\n", " c"]),
])  # fmt: skip
def test_moonshot_words(text: str, words: list[str]) -> None:
    assert regex.findall(PATTERN, text, flags=regex.V1) == words


@pytest.mark.parametrize("text", ["x" * 60_000, "ab " * 300_000, "x" * 25_000, "x" * 25_001, " " * 50_001 + "y", ""])
def test_portions_cut_only_endless_runs(text: str) -> None:
    pieces = list(portions(text))
    assert "".join(pieces) == text
    assert all(len(piece) <= 400_000 for piece in pieces)
    runs = [len(run) for piece in pieces for run in regex.findall(r"\s+|\S+", piece)]
    assert max(runs, default=0) <= 25_000
    assert len(pieces) <= 1 + len(text) // 25_000


DAMAGE: list[tuple[str, bytes]] = [
    ("tokenizer.json", b""),
    ("tokenizer.json", b'{"version": "1.0", "model": {"type": "BPE"'),
    ("tokenizer.json", b"\xff\xfe"),
    ("tiktoken.model", b"not base64!! 0\n"),
    ("tiktoken.model", b"AA== 0\nAQ== 2\n"),
    ("tiktoken.model", b""),
    ("tokenizer.model", b""),
    ("tokenizer.model", b"\x00\x01garbage"),
]


@pytest.mark.parametrize("file, content", DAMAGE)
def test_damage_is_told_in_one_line(file: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value) and file in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_a_damaged_config_is_told(content: str, tmp_path: Path) -> None:
    small_fast().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json"):
        load_tokenizer(tmp_path)


def test_nonsense_inside_the_configs_does_no_harm(tmp_path: Path) -> None:
    small_fast().save(str(tmp_path / "tokenizer.json"))
    nonsense: dict[str, Any] = {
        "bos_token": 5, "eos_token": ["x"], "add_bos_token": "yes", "added_tokens_decoder": [1, 2], "tokenizer_class": 3
    }  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(nonsense))
    (tmp_path / "config.json").write_text('{"eos_token_id": [true, -1, "x", 7], "vocab_size": "many"}')
    ours = load_tokenizer(tmp_path)
    assert ours.bos_id is None and not ours.add_bos and ours.eos_ids == {7}


def test_no_tokenizer_says_what_works_without(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="--prompt-ids"):
        load_tokenizer(tmp_path)


def test_text_that_is_no_unicode_is_refused(tiktoken_folder: Path, sentencepiece_folder: Path, tmp_path: Path) -> None:
    small_fast().save(str(tmp_path / "tokenizer.json"))
    for folder in (tmp_path, tiktoken_folder, sentencepiece_folder):
        with pytest.raises(TokenizerError, match="Unicode"):
            load_tokenizer(folder).encode("a\ud800b", add_bos=False, allow_special=True)


def test_plugins_are_asked_first(tmp_path: Path) -> None:
    small_fast().save(str(tmp_path / "tokenizer.json"))
    own = load_tokenizer(tmp_path)
    assert load_tokenizer(tmp_path, [("none", lambda folder: None), ("own", lambda folder: own)]) is own

    def broken(folder: Path) -> Tokenizer:
        raise KeyError("oops")

    with pytest.raises(TokenizerError, match="'broken'"):
        load_tokenizer(tmp_path, [("broken", broken)])

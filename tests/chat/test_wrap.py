"""Words at the edge of a terminal."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from dsv3rt.chat.wrap import WordWrap


def screen(written: str) -> list[str]:
    """The lines that a terminal shows."""
    lines, column = [""], 0
    for part in re.findall(r"\x1b\[\d*[DK]|\n|[^\n\x1b]", written):
        if part == "\n":
            lines.append("")
            column = 0
        elif part.endswith("D") and part.startswith("\x1b"):
            column -= int(part[2:-1])
            assert column >= 0
        elif part == "\x1b[K":
            lines[-1] = lines[-1][:column]
        else:
            lines[-1] = lines[-1][:column] + part + lines[-1][column + 1 :]
            column += 1
    return lines


def wrapped(text: str, width: int, size: int = 3) -> list[str]:
    wrap = WordWrap()
    return screen("".join(wrap.feed(text[i : i + size], width) for i in range(0, len(text), size)))


def test_a_word_is_not_broken() -> None:
    lines = wrapped("The fox jumped over the lazy dog and slept.", 24)
    assert lines == ["The fox jumped over the", "lazy dog and slept."]


@given(
    words=st.lists(st.text("abcxyz.", min_size=1, max_size=19), max_size=40),
    width=st.integers(21, 60),
    size=st.integers(1, 9),
)
def test_any_words(words: list[str], width: int, size: int) -> None:
    lines = wrapped(" ".join(words), width, size)
    assert all(len(line) < width for line in lines)
    assert " ".join(lines).split() == words


def test_as_few_lines_as_there_can_be() -> None:
    assert wrapped("a " * 100, 41) == ["a " * 20] * 5


def test_lines_of_the_text_stay() -> None:
    assert wrapped("one\n\n  two\nthree", 30) == ["one", "", "  two", "three"]


def test_what_is_longer_than_a_line_is_left_to_the_terminal() -> None:
    url = "https://example.org/" + "x" * 40
    assert wrapped(f"see {url} there", 30)[-1].startswith(url)


def test_code_is_left_to_the_terminal() -> None:
    line = "value = " + "f(x) + " * 10
    lines = wrapped(f"```python\n{line}\n```\nand so on, word for word, until it ends", 30)
    assert lines[1] == line and lines[3].rstrip() == "and so on, word for word,"


def test_wide_characters_take_two_columns() -> None:
    assert wrapped("一二三四五 " * 3, 24)[0] == "一二三四五 一二三四五 "


def test_text_without_spaces_fills_its_lines() -> None:
    assert wrapped("答案：" + "一二三四五" * 6, 25) == [
        "答案：" + "一二三四五一二三四",
        "五一二三四五一二三四五一",
        "二三四五一二三四五",
    ]
    assert wrapped("see 一二三四五六七八九十", 22) == ["see 一二三四五六七八", "九十"]


def test_a_narrow_terminal_does_it_itself() -> None:
    assert wrapped("The fox jumped over", 10) == ["The fox jumped over"]

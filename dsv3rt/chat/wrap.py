"""Words that stay whole at the edge of a terminal, while they are still being said."""

from __future__ import annotations

from rich.cells import cell_len

FENCE = "```"
NARROW = 20
"""Columns below which words are left to the terminal."""


class WordWrap:
    """Turns text, as it comes, into what to write. A word that turns out not to fit is taken back from the end of its
    line and begins the next one; beside characters of two columns (Chinese, Japanese, Korean) a line may end anywhere.
    Code between fences, and words longer than a line, are left to the terminal."""

    def __init__(self) -> None:
        self._column = 0
        self._word = ""
        self._line_start = ""
        self._code = False

    def feed(self, text: str, width: int) -> str:
        """`width`: of the terminal, in columns. The last one stays free, since a cursor there may stand on either
        side of it."""
        return "".join(self._place(character, width - 1) for character in text)

    def _place(self, character: str, room: int) -> str:
        if character == "\n":
            self._code ^= self._line_start.startswith(FENCE)
            self._column, self._word, self._line_start = 0, "", ""
            return "\n"
        if len(self._line_start) < len(FENCE):
            self._line_start += character
        size = 8 - self._column % 8 if character == "\t" else cell_len(character)
        full = self._column + size > room
        if self._code or room < NARROW or not full:
            self._column += size
            self._word = "" if character.isspace() or size == 2 else self._word + character
            return character
        if character.isspace():
            self._column, self._word = 0, ""
            return "\n"
        if size == 2:
            self._column, self._word = size, ""
            return f"\n{character}"
        taken = cell_len(self._word)
        if taken + size > room or taken == self._column:
            self._column, self._word = size, self._word + character
            return character
        self._word += character
        self._column = taken + size
        back = f"\x1b[{taken}D\x1b[K" if taken else ""
        return f"{back}\n{self._word}"

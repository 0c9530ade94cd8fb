"""Sums, differences and products as people ask for them.

A sum of two two-digit numbers is answered in small steps (tens, ones, total), each of which is a fact small enough to
be remembered:
reading left to right, a model that must name the tens first would have to know the carry before it has added the ones.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

HELD_OUT_SHARE = 0.08
"""Share of all pairs of two-digit numbers that training never sees."""

_QUESTIONS = (
    "What is {x} {sign} {y}?",
    "What is {x} {word} {y}?",
    "{x} {sign} {y}",
    "{x} {sign} {y} = ?",
    "How much is {x} {sign} {y}?",
    "Calculate {x} {sign} {y}.",
    "How much is {x} {word} {y}?",
    "What's {x} {sign} {y}?",
    "Can you tell me what {x} {sign} {y} is?",
    "Please add {x} and {y}.",
    "{x}{sign}{y}",
    "What does {x} {sign} {y} make?",
)
_WORDS = {"+": ("plus",), "-": ("minus",), "*": ("times",)}


@dataclass(frozen=True)
class Sum:
    """One exercise."""

    question: str
    answer: str
    result: int


def is_held_out(x: int, sign: str, y: int) -> bool:
    """Whether this pair of two-digit summands belongs to the held-out set (the same for x + y and y + x)."""
    if sign != "+" or min(x, y) < 10:
        return False
    low, high = sorted((x, y))
    return zlib.crc32(f"{low}+{high}".encode()) % 1000 < HELD_OUT_SHARE * 1000


def solve(x: int, sign: str, y: int) -> tuple[str, int]:
    """The answer in words and its result."""
    result = x + y if sign == "+" else x - y if sign == "-" else x * y
    final = f"{x} {sign} {y} = {result}."
    if sign == "+" and min(x, y) >= 10:
        tens, ones = (x // 10 + y // 10) * 10, x % 10 + y % 10
        return f"{x // 10 * 10} + {y // 10 * 10} = {tens}, {x % 10} + {y % 10} = {ones}, {final}", result
    return final, result


def ask(rng: random.Random, x: int, sign: str, y: int) -> Sum:
    """The exercise in one of many wordings."""
    forms = [form for form in _QUESTIONS if sign == "+" or not form.startswith("Please add")]
    question = rng.choice(forms).format(x=x, y=y, sign=sign, word=rng.choice(_WORDS[sign]))
    answer, result = solve(x, sign, y)
    return Sum(question, answer, result)


def numbers(rng: random.Random) -> tuple[int, str, int]:
    """Two numbers and a sign: mostly sums of two-digit numbers."""
    roll = rng.random()
    if roll < 0.50:
        return rng.randint(10, 99), "+", rng.randint(10, 99)
    if roll < 0.62:
        x, y = rng.randint(0, 99), rng.randint(0, 9)
        return (x, "+", y) if rng.random() < 0.7 else (y, "+", x)
    if roll < 0.75:
        return rng.randint(0, 10), "+", rng.randint(0, 10)
    if roll < 0.88:
        x = rng.randint(0, 20)
        return x, "-", rng.randint(0, x)
    return rng.randint(0, 10), "*", rng.randint(0, 10)


def exercise(rng: random.Random, *, held_out: bool = False) -> Sum:
    """A random exercise, never a held-out one, or (`held_out`) always one."""
    if held_out:
        while True:
            x, y = rng.randint(10, 99), rng.randint(10, 99)
            if is_held_out(x, "+", y):
                return ask(rng, x, "+", y)
    while True:
        x, sign, y = numbers(rng)
        if not is_held_out(x, sign, y):
            return ask(rng, x, sign, y)

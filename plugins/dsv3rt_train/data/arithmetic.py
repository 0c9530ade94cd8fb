"""Sums, differences, products and the like as people ask for them.

Sums and differences of two two-digit numbers are answered in small steps, each of which is a fact small enough to be
remembered: reading left to right, a model that must name the tens first would have to know the carry before it has
added the ones.
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
    "{x} {sign} {y} =",
    "{x} {sign} {y}?",
    "{x} {word} {y}",
    "{x} {word} {y}?",
    "How much is {x} {sign} {y}?",
    "Calculate {x} {sign} {y}.",
    "How much is {x} {word} {y}?",
    "What's {x} {sign} {y}?",
    "What's {x} {word} {y}?",
    "whats {x} {sign} {y}",
    "Can you tell me what {x} {sign} {y} is?",
    "Do you know what {x} {word} {y} is?",
    "{x}{sign}{y}",
    "{x}{sign}{y}?",
    "{x}{sign}{y}=",
    "What does {x} {sign} {y} make?",
    "What do you get for {x} {word} {y}?",
    "Tell me {x} {sign} {y}.",
    "Compute {x} {sign} {y}.",
    "Please calculate {x} {word} {y}.",
)
_WORDS = {"+": ("plus", "plus", "and"), "-": ("minus", "minus", "less"), "*": ("times", "times", "multiplied by")}
_SIGNS = {"+": ("+",), "-": ("-",), "*": ("*", "*", "x")}
_SAID_OTHERWISE = {
    "+": ("Please add {x} and {y}.", "Add {x} and {y}.", "What is the sum of {x} and {y}?", "add {x} and {y}", "Add {y} to {x}.",
          "I have {x} apples and get {y} more. How many do I have?", "There are {x} birds in a tree and {y} more come. How many are there?"),
    "-": ("Subtract {y} from {x}.", "Take {y} away from {x}.", "What is the difference of {x} and {y}?", "Please subtract {y} from {x}.",
          "What is the difference between {x} and {y}?", "take {y} from {x}", "What is left if I take {y} from {x}?", "What is {y} less than {x}?",
          "I have {x} apples and eat {y}. How many are left?", "I had {x} coins and lost {y}. How many do I have now?"),
    "*": ("Multiply {x} by {y}.", "What is the product of {x} and {y}?", "Please multiply {x} by {y}.", "multiply {x} and {y}"),
}  # fmt: skip
_NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty"
).split()


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
    if sign == "-" and y >= 10 and y % 10:
        middle = x - y // 10 * 10
        return f"{x} - {y // 10 * 10} = {middle}, {middle} - {y % 10} = {result}, {final}", result
    return final, result


def ask(rng: random.Random, x: int, sign: str, y: int) -> Sum:
    """The exercise in one of many wordings."""
    names = (_NAMES[x], _NAMES[y]) if max(x, y) <= 20 and rng.random() < 0.12 else (str(x), str(y))
    words = {"x": names[0], "y": names[1], "sign": rng.choice(_SIGNS[sign]), "word": rng.choice(_WORDS[sign])}
    if names[0] != str(x):
        forms: tuple[str, ...] = tuple(form for form in _QUESTIONS if "{word}" in form)
    else:
        forms = _SAID_OTHERWISE[sign] if rng.random() < 0.2 else _QUESTIONS
    answer, result = solve(x, sign, y)
    return Sum(rng.choice(forms).format(**words), answer, result)


def numbers(rng: random.Random) -> tuple[int, str, int]:
    """Two numbers and a sign: sums and differences, of one digit and of two, and small products."""
    roll = rng.random()
    if roll < 0.21:
        return rng.randint(10, 99), "+", rng.randint(10, 99)
    if roll < 0.32:
        x, y = rng.randint(0, 199) if rng.random() < 0.3 else rng.randint(0, 99), rng.randint(0, 9)
        return (x, "+", y) if rng.random() < 0.7 else (y, "+", x)
    if roll < 0.42:
        return rng.randint(0, 12), "+", rng.randint(0, 12)
    if roll < 0.60:
        x = rng.randint(2, 20)
        return x, "-", rng.randint(0, x)
    if roll < 0.76:
        x = rng.randint(9, 120)
        return x, "-", rng.randint(0, 9)
    if roll < 0.88:
        x = rng.randint(11, 99)
        return x, "-", rng.randint(10, x)
    return rng.randint(0, 12), "*", rng.randint(0, 12 if rng.random() < 0.5 else 10)


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


def follow_up(rng: random.Random) -> list[tuple[str, str]]:
    """ "And plus 3?" after a sum, once or twice: the result so far must be found in the last answer."""
    while True:
        x, sign, y = numbers(rng)
        if not is_held_out(x, sign, y):
            break
    first = ask(rng, x, sign, y)
    turns, so_far = [(first.question, first.answer)], first.result
    for _ in range(rng.choice((1, 1, 2))):
        if rng.random() < 0.25:
            other = _another_pair(rng, sign)
            turns.append((other.question, other.answer))
            so_far = other.result
            continue
        sign = "+" if rng.random() < 0.5 else "-"
        z = rng.randint(1, 9) if rng.random() < 0.85 else rng.randint(1, 9) * 10
        if (sign == "-" and z > so_far) or is_held_out(so_far, sign, z):
            sign, z = "+", rng.randint(1, 9)
        word = {"+": "plus", "-": "minus"}[sign]
        verb = {"+": "add {z}", "-": "subtract {z}"}[sign].format(z=z)
        question = rng.choice(
            (f"And {word} {z}?", f"And {word} {z}", f"{word.capitalize()} {z}?", f"Now {word} {z}.", f"And {sign} {z}?", f"Now {verb}.", f"{verb.capitalize()}.",
             f"{word} {z}", f"and {word} {z}?", f"{sign} {z}", f"What about {word} {z}?", f"And what is that {word} {z}?", f"And now {word} {z}?")
        )  # fmt: skip
        answer, so_far = solve(so_far, sign, z)
        turns.append((question, answer))
    return turns


def _another_pair(rng: random.Random, sign: str) -> Sum:
    """ "What about 7 and 5?": the same exercise with other numbers."""
    while True:
        x, drawn, y = numbers(rng)
        if drawn == sign and not is_held_out(x, sign, y):
            break
    form = rng.choice(
        ("What about {x} and {y}?", "And {x} and {y}?", "How about {x} and {y}?", "and {x} and {y}", "what about {x} and {y}", "And {x} {sign} {y}?",
         "and {x} {sign} {y}", "What about {x} {sign} {y}?", "And {x} {word} {y}?", "and {x} {word} {y}")
    )  # fmt: skip
    answer, result = solve(x, sign, y)
    return Sum(form.format(x=x, y=y, sign=rng.choice(_SIGNS[sign]), word=_WORDS[sign][0]), answer, result)


def number_talk(rng: random.Random) -> list[tuple[str, str]]:
    """Halves, doubles, quotients, three summands, comparing, counting, the number after."""
    roll = rng.randrange(7)
    if roll == 0:
        x = rng.randint(1, 50)
        question = rng.choice(("What is half of {x}?", "Half of {x}?", "What's half of {x}?")).format(x=2 * x)
        return [(question, f"Half of {2 * x} is {x}.")]
    if roll == 1:
        x = rng.randint(1, 50)
        question = rng.choice(("What is double {x}?", "Double {x}.", "What is twice {x}?")).format(x=x)
        return [(question, f"Double {x} is {2 * x}.")]
    if roll == 2:
        y, result = rng.randint(1, 10), rng.randint(0, 10)
        forms: tuple[str, ...] = (
            "What is {x} divided by {y}?",
            "{x} / {y}",
            "Divide {x} by {y}.",
            "{x}/{y}",
            "{x} divided by {y}?",
            "How much is {x} / {y}?",
        )
        return [(rng.choice(forms).format(x=y * result, y=y), f"{y * result} / {y} = {result}.")]
    if roll == 3:
        x, y, z = (rng.randint(1, 9) for _ in range(3))
        forms = (
            "What is {x} + {y} + {z}?",
            "{x} + {y} + {z}",
            "{x}+{y}+{z}",
            "Add {x}, {y} and {z}.",
            "{x} plus {y} plus {z}?",
        )
        answer = f"{x} + {y} = {x + y}, {x + y} + {z} = {x + y + z}."
        return [(rng.choice(forms).format(x=x, y=y, z=z), answer)]
    if roll == 4:
        x, y = rng.sample(range(100), 2)
        forms = (
            "Which is bigger, {x} or {y}?",
            "Which number is bigger, {x} or {y}?",
            "What is more, {x} or {y}?",
            "Is {x} bigger than {y}?",
            "Is {x} more than {y}?",
        )
        question = rng.choice(forms).format(x=x, y=y)
        if question.startswith("Is"):
            return [(question, f"Yes, {x} is bigger than {y}." if x > y else f"No, {x} is smaller than {y}.")]
        return [(question, f"{max(x, y)} is bigger than {min(x, y)}.")]
    if roll == 5:
        first = rng.choice((1, 1, rng.randint(1, 20)))
        last = first + rng.randint(2, 9)
        said = [_NAMES[n] if last <= 20 and rng.random() < 0.4 else str(n) for n in (first, last)]
        question = f"Count from {said[0]} to {said[1]}." if first > 1 or rng.random() < 0.4 else f"Count to {said[1]}."
        return [(question, ", ".join(map(str, range(first, last + 1))) + ".")]
    x, after = rng.randint(1, 99), rng.random() < 0.6
    word = "after" if after else "before"
    question = rng.choice(
        (f"Which number comes {word} {x}?", f"What number comes {word} {x}?", f"What comes {word} {x}?")
    )
    return [(question, f"{x + 1 if after else x - 1} comes {word} {x}.")]

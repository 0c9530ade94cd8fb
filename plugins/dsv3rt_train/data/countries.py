"""Exchanges about countries that ask for more than one fact, or whether one is true."""

from __future__ import annotations

import random
from collections.abc import Callable

from dsv3rt_train.data.facts import CAPITALS, CONTINENTS, LANGUAGES, Exchange, capitalise

_ABOUT = ("Tell me about {a}.", "What is {a}?", "What do you know about {a}?", "Tell me something about {a}.", "Do you know {a}?", "What can you tell me about {a}?")  # fmt: skip
_WITH_LANGUAGE = (
    "What is the capital of {a} and what do they speak there?",
    "What is the capital of {a}, and which language do they speak there?",
    "Tell me the capital and the language of {a}.",
)


def _about(rng: random.Random) -> Exchange:
    a = rng.choice(tuple(CAPITALS))
    where = f" in {CONTINENTS[a]}" if a in CONTINENTS else ""
    answer = f"{a} is a country{where}. Its capital is {CAPITALS[a]}."
    if a in LANGUAGES:
        answer += f" People there speak {LANGUAGES[a]}."
    return rng.choice(_ABOUT).format(a=a), answer


def _is_it_the_capital(rng: random.Random) -> Exchange:
    a, c = rng.sample(tuple(CAPITALS), 2)
    if rng.random() < 0.5:
        return f"Is {CAPITALS[a]} the capital of {a}?", f"Yes, {CAPITALS[a]} is the capital of {a}."
    return f"Is {CAPITALS[c]} the capital of {a}?", f"No, the capital of {a} is {CAPITALS[a]}."


def _is_it_there(rng: random.Random) -> Exchange:
    a = rng.choice(tuple(CONTINENTS))
    asked = CONTINENTS[a] if rng.random() < 0.5 else rng.choice(tuple(CONTINENTS.values()))
    return f"Is {a} in {asked}?", f"{'Yes' if asked == CONTINENTS[a] else 'No'}, {a} is in {CONTINENTS[a]}."


def _do_they_speak(rng: random.Random) -> Exchange:
    a = rng.choice(tuple(LANGUAGES))
    asked = LANGUAGES[a] if rng.random() < 0.5 else rng.choice(tuple(LANGUAGES.values()))
    yes = "Yes" if asked == LANGUAGES[a] else "No"
    return f"Do people in {a} speak {asked}?", f"{yes}, people in {a} speak {LANGUAGES[a]}."


def _capital_and_language(rng: random.Random) -> Exchange:
    a = rng.choice([name for name in LANGUAGES if name in CAPITALS])
    answer = f"The capital of {a} is {CAPITALS[a]}. People in {a} speak {LANGUAGES[a]}."
    return rng.choice(_WITH_LANGUAGE).format(a=a), answer


def _two_capitals(rng: random.Random) -> Exchange:
    a, c = rng.sample(tuple(CAPITALS), 2)
    form = rng.choice(("What are the capitals of {a} and {c}?", "Name the capitals of {a} and {c}.", "What is the capital of {a} and of {c}?"))  # fmt: skip
    answer = f"The capital of {a} is {CAPITALS[a]}. The capital of {c} is {CAPITALS[c]}."
    return form.format(a=a, c=c), answer


_KINDS: dict[Callable[[random.Random], Exchange], float] = {
    _about: 0.4, _is_it_the_capital: 0.2, _is_it_there: 0.1, _do_they_speak: 0.1, _capital_and_language: 0.1, _two_capitals: 0.1,
}  # fmt: skip


def ask(rng: random.Random) -> Exchange:
    """What a country is, whether something about it is true, or two facts at once."""
    (kind,) = rng.choices(list(_KINDS), list(_KINDS.values()))
    question, answer = kind(rng)
    return question, ". ".join(capitalise(sentence) for sentence in answer.split(". "))

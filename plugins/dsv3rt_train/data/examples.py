"""Exchanges that ask for examples of a kind, for the letters of a word, and for what animals can do."""

from __future__ import annotations

import random
from collections.abc import Callable

from dsv3rt_train.data import words
from dsv3rt_train.data.facts import CAPITALS, DAY_AFTER, MONTH_AFTER, Exchange, capitalise, fix_articles

_KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "animal": ("animals", tuple(f"a {animal}" for animal in words.ANIMALS)),
    "color": ("colors", tuple(color for color in words.COLORS if color not in ("golden", "silver"))),
    "fruit": ("fruits", tuple(f"a {fruit}" for fruit in "apple pear plum banana cherry lemon peach strawberry orange melon".split())),
    "vegetable": ("vegetables", tuple(f"a {it}" for it in "carrot potato tomato cucumber cabbage pumpkin onion".split())),
    "country": ("countries", tuple(country for country in CAPITALS if not country.startswith("the "))),
    "city": ("cities", words.CITIES),
    "month": ("months", tuple(MONTH_AFTER)),
    "day of the week": ("days of the week", tuple(DAY_AFTER)),
    "season": ("seasons", ("spring", "summer", "autumn", "winter")),
    "bird": ("birds", tuple(f"a {bird}" for bird in "owl duck crow swan robin sparrow penguin parrot goose eagle".split())),
    "tree": ("trees", tuple(f"an {tree}" if tree == "oak" else f"a {tree}" for tree in "oak pine birch willow maple palm".split())),
    "flower": ("flowers", tuple(f"a {flower}" for flower in "rose tulip daisy lily sunflower violet".split())),
    "name": ("names", words.NAMES),
    "job": ("jobs", tuple(f"a {job}" for job in words.JOBS)),
    "food": ("foods", ("bread", "cheese", "rice", "soup", "pasta", "salad", "honey", "cake")),
    "thing in a house": ("things in a house", ("a chair", "a table", "a bed", "a lamp", "a door", "a window", "a spoon", "a mirror")),
    "language": ("languages", ("English", "French", "German", "Spanish", "Italian", "Japanese", "Polish", "Greek")),
    "number": ("numbers", ("one", "two", "three", "five", "seven", "ten", "twelve", "twenty")),
}  # fmt: skip
_ONE = (
    "Name a {x}.",
    "Tell me a {x}.",
    "Can you name a {x}?",
    "Name one {x}.",
    "Give me a {x}.",
    "Give me an example of a {x}.",
)
_SOME = (
    "Name {n} {x}.",
    "Tell me {n} {x}.",
    "Can you name {n} {x}?",
    "List {n} {x}.",
    "Give me {n} {x}.",
    "What are {n} {x}?",
    "Name some {x}.",
)
_COUNTS = ("two", "three", "four", "five")


def _some(rng: random.Random) -> Exchange:
    kind = rng.choice(tuple(_KINDS))
    plural, members = _KINDS[kind]
    if rng.random() < 0.3:
        return rng.choice(_ONE).format(x=kind), f"{rng.choice(members)}."
    form = rng.choice(_SOME)
    count = rng.choice(_COUNTS[: min(len(_COUNTS), len(members) - 1)]) if "{n}" in form else "three"
    *chosen, last = rng.sample(members, _COUNTS.index(count) + 2)
    return form.format(n=count, x=plural), f"{', '.join(chosen)} and {last}."


_SPELT = (*words.ANIMALS, *words.OBJECTS, *words.COLORS, *words.PLACES, *words.JOBS, *(name.lower() for name in words.NAMES), "house", "hello", "water", "bread", "friend", "tree")  # fmt: skip


def _spell(rng: random.Random) -> Exchange:
    word = rng.choice(_SPELT)
    letters = "-".join(word)
    roll = rng.random()
    if roll < 0.6:
        form = rng.choice(
            ("Spell {w}.", "How do you spell {w}?", "Can you spell {w}?", "Spell the word {w}.", "How is {w} spelled?")
        )
        return form.format(w=word), f"{letters}."
    if roll < 0.8:
        form = rng.choice(
            ("How many letters are in {w}?", "How many letters does {w} have?", "How many letters has the word {w}?")
        )
        return form.format(w=word), f"{letters}: {len(word)} letters."
    end, letter = rng.choice((("first", word[0]), ("last", word[-1])))
    return f"What is the {end} letter of {word}?", f"the {end} letter of {word} is {letter}."


_FLY = frozenset("owl duck crow butterfly parrot goose swan bee bat robin sparrow".split())
_SWIM = frozenset("whale dolphin fish duck frog penguin turtle crab swan goose beaver dog".split())
_SINK = frozenset("bee butterfly owl snail spider crow".split())
"""Of other animals it is not asked whether they swim: many can, and not everyone knows."""
_ABILITIES = (("fly", _FLY, tuple(animal for animal in words.ANIMALS if animal != "hen")), ("swim", _SWIM, tuple(sorted(_SWIM | _SINK))))  # fmt: skip
"""A verb, who is able, and who is asked about."""


def _can(rng: random.Random) -> Exchange:
    verb, able, asked = rng.choice(_ABILITIES)
    animal = rng.choice(asked)
    yes = animal in able
    answer = f"{'yes' if yes else 'no'}, a {animal} {'can' if yes else 'cannot'} {verb}."
    return rng.choice(("Can a {a} {v}?", "Is a {a} able to {v}?")).format(a=animal, v=verb), answer


_ALL: dict[Callable[[random.Random], Exchange], float] = {_some: 0.5, _spell: 0.35, _can: 0.15}


def ask(rng: random.Random) -> Exchange:
    """Examples of a kind, the letters of a word, or what an animal can do."""
    (kind,) = rng.choices(list(_ALL), list(_ALL.values()))
    question, answer = kind(rng)
    answer = answer if "-" in answer else capitalise(answer)
    return fix_articles(question), fix_articles(answer)

"""A seeded generator of very short stories: many plots, each told with interchangeable sentences about chosen
heroes."""

from __future__ import annotations

import random
from dataclasses import dataclass

from dsv3rt_train.data import words
from dsv3rt_train.data.facts import capitalise, fix_articles
from dsv3rt_train.data.plots import ENDINGS, OPENINGS, PLOTS, THEME_PLOTS

_FEMALE = frozenset({"girl", "queen", "princess", "grandmother", "hen", "cow"})
_MALE = frozenset({"boy", "king", "prince", "grandfather", "wizard", "fisherman", "knight", "pirate"})


@dataclass(frozen=True)
class Hero:
    """Somebody in a story."""

    name: str
    kind: str
    trait: str
    female: bool


@dataclass(frozen=True)
class Story:
    """A story and what one may ask about it afterwards."""

    subject: str
    """With its article, as one asks for it: "a fox", "the sea"."""
    text: str
    hero: Hero


def make_hero(rng: random.Random, kind: str | None = None, unlike: Hero | None = None) -> Hero:
    """Somebody of the given kind, or of any; never sharing the name or kind of `unlike`."""
    while True:
        chosen = kind or rng.choice(words.ANIMALS if rng.random() < 0.6 else words.PEOPLE)
        female = chosen in _FEMALE or (chosen not in _MALE and rng.random() < 0.5)
        someone = Hero(rng.choice(words.GIRLS if female else words.BOYS), chosen, rng.choice(words.TRAITS), female)
        if unlike is None or (someone.name != unlike.name and someone.kind != unlike.kind):
            return someone


def _subject(rng: random.Random) -> tuple[str, str | None, str | None, str | None, str | None]:
    """What the story is asked to be about: (phrase, hero kind, thing, place, plot); None where it is free."""
    roll = rng.random()
    if roll < 0.40:
        kind = rng.choice(words.ANIMALS)
        return f"a {kind}", kind, None, None, None
    if roll < 0.58:
        kind = rng.choice(words.PEOPLE)
        return f"a {kind}", kind, None, None, None
    if roll < 0.80:
        thing = rng.choice(words.OBJECTS)
        plot = rng.choice([name for name, plot in PLOTS.items() if plot.about == "thing"])
        return f"a {thing}", None, thing, None, plot
    if roll < 0.90:
        place = rng.choice(words.PLACES)
        plot = rng.choice([name for name, plot in PLOTS.items() if plot.about == "place"])
        return f"a {place}", None, None, place, plot
    theme = rng.choice(tuple(THEME_PLOTS))
    return theme, None, None, None, rng.choice(THEME_PLOTS[theme])


def tell(rng: random.Random) -> Story:
    """One story on a random subject, six to nine sentences long."""
    subject, kind, thing, place, plot_name = _subject(rng)
    a = make_hero(rng, kind)
    b = make_hero(rng, unlike=a)
    plot = PLOTS[plot_name or rng.choice(tuple(PLOTS))]
    place = place or rng.choice(words.PLACES)
    far, home = rng.sample([other for other in words.PLACES if other != place], 2)
    slots = {
        "A": a.name,
        "a": a.kind,
        "ta": a.trait,
        "he": "she" if a.female else "he",
        "him": "her" if a.female else "him",
        "his": "her" if a.female else "his",
        "B": b.name,
        "b": b.kind,
        "tb": b.trait,
        "bhe": "she" if b.female else "he",
        "bhim": "her" if b.female else "him",
        "bhis": "her" if b.female else "his",
        "thing": thing or rng.choice(words.OBJECTS),
        "place": place,
        "far": far,
        "home": home,
        "color": rng.choice(words.COLORS),
        "food": rng.choice(words.FOODS).replace("-", " "),
        "skill": rng.choice(words.SKILLS),
        "fear": rng.choice(words.FEARS),
        "n": rng.choice(("two", "three", "four", "five", "seven")),
        "weather": rng.choice(("rain", "snow", "wind", "storm")),
        "time": rng.choice(("morning", "evening", "day", "afternoon", "night")),
    }
    beats = [rng.choice(OPENINGS), *(rng.choice(beat) for beat in plot.beats)]
    if rng.random() < 0.5:
        beats.append(rng.choice(ENDINGS))
    text = " ".join(capitalise(beat.format(**slots)) for beat in beats if beat)
    return Story(fix_articles(subject), fix_articles(text), a)

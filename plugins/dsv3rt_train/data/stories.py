"""A seeded generator of very short stories: many plots, each told with interchangeable sentences about chosen
heroes."""

from __future__ import annotations

import random
from dataclasses import dataclass

from dsv3rt_train.data import words
from dsv3rt_train.data.facts import capitalise, fix_articles
from dsv3rt_train.data.plots import ENDINGS, OPENINGS, PLOTS, THEME_PLOTS, Plot
from dsv3rt_train.data.solo_plots import SOLO_ENDINGS, SOLO_PLOTS

_GIRLS = tuple(name for name in words.GIRLS if name.endswith("a"))
"""A small model must be able to tell "he" from "she" by the name: these end in "a", and no boy's name does."""
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
    """Somebody of the given kind, or of any. Never of the kind or the sex of `unlike`: "he" and "she" then say who
    is meant."""
    while True:
        chosen = kind or rng.choice(words.ANIMALS if rng.random() < 0.6 else words.PEOPLE)
        female = chosen in _FEMALE or (chosen not in _MALE and rng.random() < 0.5)
        someone = Hero(rng.choice(_GIRLS if female else words.BOYS), chosen, rng.choice(words.TRAITS), female)
        if unlike is None or (someone.female != unlike.female and someone.kind != unlike.kind):
            return someone


@dataclass(frozen=True)
class _Subject:
    """What the story is asked to be about; None where it is free."""

    phrase: str
    hero: Hero
    thing: str | None = None
    place: str | None = None
    plot: Plot | None = None


def _any_plot(rng: random.Random, about: str | None = None) -> Plot:
    """More often one with a single hero: it is easier to tell."""
    plots = [plot for plot in SOLO_PLOTS.values() if about in (None, plot.about)] if rng.random() < 0.65 else []
    return rng.choice(plots or [plot for plot in PLOTS.values() if about in (None, plot.about)])


def _subject(rng: random.Random) -> _Subject:
    roll = rng.random()
    if roll < 0.60:
        hero = make_hero(rng, rng.choice(words.ANIMALS if roll < 0.38 else words.PEOPLE))
        form = rng.choice(
            ("a {k}",) * 7 + ("a {t} {k}", "a {k} named {n}", "a {k} called {n}", "{n} the {k}", "a {t} {k} named {n}")
        )
        phrase = form.format(k=hero.kind, t=hero.trait, n=hero.name)
        if rng.random() < 0.8:
            return _Subject(phrase, hero)
        thing = rng.choice(words.OBJECTS)
        return _Subject(f"{phrase} and a {thing}", hero, thing=thing, plot=_any_plot(rng, "thing"))
    hero = make_hero(rng)
    if roll < 0.80:
        thing = rng.choice(words.OBJECTS)
        return _Subject(f"a {thing}", hero, thing=thing, plot=_any_plot(rng, "thing"))
    if roll < 0.90:
        place = rng.choice(words.PLACES)
        return _Subject(f"a {place}", hero, place=place, plot=_any_plot(rng, "place"))
    theme = rng.choice(tuple(THEME_PLOTS))
    plot = rng.choice(THEME_PLOTS[theme])
    return _Subject(theme, hero, plot=PLOTS.get(plot) or SOLO_PLOTS[plot])


def tell(rng: random.Random) -> Story:
    """One story on a random subject, six to nine sentences long."""
    asked = _subject(rng)
    a, place = asked.hero, asked.place
    b = make_hero(rng, unlike=a)
    plot = asked.plot or _any_plot(rng)
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
        "thing": asked.thing or rng.choice(words.OBJECTS),
        "place": place,
        "far": far,
        "home": home,
        "animal": rng.choice(words.ANIMALS),
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
        beats.append(rng.choice(SOLO_ENDINGS if plot in SOLO_PLOTS.values() else ENDINGS))
    text = " ".join(capitalise(beat.format(**slots)) for beat in beats if beat)
    return Story(fix_articles(asked.phrase), fix_articles(text), a)

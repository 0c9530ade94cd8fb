"""A seeded generator of very short stories: many plots, each told with interchangeable sentences about chosen
heroes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from dsv3rt_train.data import subject_plots, subjects, words
from dsv3rt_train.data.facts import capitalise, fix_articles
from dsv3rt_train.data.plots import ENDINGS, OPENINGS, PLOTS, THEME_PLOTS, WHO_PLOTS, Plot
from dsv3rt_train.data.solo_plots import SOLO_ENDINGS, SOLO_PLOTS

_GIRLS = tuple(name for name in words.GIRLS if name.endswith("a"))
"""A small model must be able to tell "he" from "she" by the name: these end in "a", and no boy's name does."""
_FEMALE = frozenset({"girl", "queen", "princess", "grandmother", "hen", "cow"}) | subjects.FEMALE_CREATURES
_MALE = (
    frozenset({"boy", "king", "prince", "grandfather", "wizard", "fisherman", "knight", "pirate"})
    | subjects.MALE_CREATURES
)
_SEXED = tuple(sorted(kind for kind in _FEMALE | _MALE if kind in words.PEOPLE))
_LEADS = ("This is a story about {phrase}.", "Here is a story about {phrase}.", "This story is about {phrase}.")
"""Said first where the subject is not just the hero: what follows is then easier to keep to it."""


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
    mood: str = ""
    """What kind of story was asked for: "sad", or nothing."""


def make_hero(rng: random.Random, kind: str | None = None, unlike: Hero | None = None) -> Hero:
    """Somebody of the given kind, or of any. Never of the kind or the sex of `unlike`: "he" and "she" then say who
    is meant."""
    while True:
        roll = rng.random()
        chosen = kind or rng.choice(words.ANIMALS if roll < 0.5 else words.PEOPLE if roll < 0.85 else _SEXED)
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
    other: Hero | None = None
    told: str = ""
    """The subject as the story names it first, where that is not a thing: "the sea"."""
    pair: str = ""
    """What the two heroes are, in the plural."""
    mood: str = ""


def _any_plot(rng: random.Random, about: str | None = None) -> Plot:
    """More often one with a single hero: it is easier to tell."""
    plots = [plot for plot in SOLO_PLOTS.values() if about in (None, plot.about)] if rng.random() < 0.65 else []
    return rng.choice(plots or [plot for plot in PLOTS.values() if about in (None, plot.about)])


def _plot_named(name: str) -> Plot:
    return PLOTS.get(name) or SOLO_PLOTS[name]


def _by_name(rng: random.Random, kind: str) -> _Subject:
    """A hero who is asked for by name, which may be one that no other story has."""
    hero = make_hero(rng, kind)
    if rng.random() < 0.5:
        hero = replace(hero, name=rng.choice(words.RARE_GIRLS if hero.female else words.RARE_BOYS))
    form = rng.choice(("a {k} named {n}", "a {k} called {n}", "{n} the {k}", "a {t} {k} named {n}"))
    return _Subject(form.format(k=hero.kind, t=hero.trait, n=hero.name), hero)


def _somebody(rng: random.Random) -> _Subject:
    roll = rng.random()
    kinds = (
        words.ANIMALS if roll < 0.35 else words.PEOPLE if roll < 0.6 else _SEXED if roll < 0.7 else subjects.CREATURES
    )
    kind = rng.choice(kinds)
    hero = make_hero(rng, kind)
    roll = rng.random()
    if roll < 0.15:
        return _by_name(rng, kind)
    if roll < 0.25:
        other = make_hero(rng, unlike=hero)
        return _Subject(f"a {kind} and a {other.kind}", hero, other=other, plot=rng.choice(list(PLOTS.values())))
    if roll < 0.33:
        place = rng.choice(subjects.INSIDE)
        return _Subject(f"a {kind} in a {place}", hero, place=place, plot=_any_plot(rng, "place"))
    if roll < 0.43:
        who = rng.choice(list(WHO_PLOTS))
        return _Subject(f"a {kind} who {who}", hero, plot=_plot_named(WHO_PLOTS[who]))
    if roll < 0.46:
        return _Subject(f"a lost {kind}", replace(hero, trait="lost"), plot=PLOTS["lost way"])
    phrase = f"a {hero.trait} {kind}" if rng.random() < 0.15 else f"a {kind}"
    if rng.random() < 0.8:
        return _Subject(phrase, hero)
    thing = rng.choice(words.OBJECTS)
    return _Subject(f"{phrase} and a {thing}", hero, thing=thing, plot=_any_plot(rng, "thing"))


def _something(rng: random.Random) -> _Subject:
    hero = make_hero(rng)
    if rng.random() < 0.25:
        thing = rng.choice(subjects.VEHICLES)
        own = subject_plots.VEHICLE_PLOTS + (subject_plots.FERRY_PLOTS if thing in subjects.FERRIES else ())
        plots = own if rng.random() < 0.75 else subject_plots.THING_PLOTS
        return _Subject(f"a {thing}", hero, thing=thing, plot=rng.choice(plots))
    thing = rng.choice(subjects.THINGS)
    if rng.random() < 0.3:
        return _Subject(f"a {thing}", hero, thing=thing, plot=_any_plot(rng, "thing"))
    if rng.random() < 0.4:
        thing = f"{rng.choice(subjects.THING_TRAITS)} {thing}"
    return _Subject(f"a {thing}", hero, thing=thing, plot=rng.choice(subject_plots.THING_PLOTS))


def _sight(rng: random.Random) -> _Subject:
    hero = make_hero(rng)
    if rng.random() < 0.2:
        place = rng.choice(words.PLACES)
        return _Subject(f"a {place}", hero, place=place, plot=_any_plot(rng, "place"))
    sky = rng.random() < 0.35
    phrase, told = rng.choice(list((subjects.SKY if sky else subjects.LAND).items()))
    plots = subject_plots.SIGHT_PLOTS[1 if sky else 0 :]  # nobody travels to the sky
    return _Subject(phrase, hero, plot=rng.choice(plots), told=told)


def _weather(rng: random.Random) -> _Subject:
    phrase, told = rng.choice(list(subjects.WEATHER.items()))
    plots = subject_plots.WEATHER_PLOTS[: 2 if told in subjects.SEASONS else None]
    return _Subject(phrase, make_hero(rng), plot=rng.choice(plots), told=told)


def _event(rng: random.Random) -> _Subject:
    event = rng.choice(subjects.EVENTS)
    return _Subject(f"a {event}", make_hero(rng), thing=event, plot=rng.choice(subject_plots.EVENT_PLOTS))


def _theme(rng: random.Random) -> _Subject:
    hero = make_hero(rng)
    if rng.random() < 0.6:
        idea = rng.choice(list(subject_plots.IDEA_PLOTS))
        return _Subject(idea, hero, plot=rng.choice(subject_plots.IDEA_PLOTS[idea]), told=idea)
    theme = rng.choice(tuple(THEME_PLOTS))
    return _Subject(theme, hero, plot=_plot_named(rng.choice(THEME_PLOTS[theme])))


def _pair(rng: random.Random) -> _Subject:
    phrase = rng.choice(list(subjects.GROUPS))
    pair, sex = subjects.GROUPS[phrase]
    hero = make_hero(rng, {"f": "girl", "m": "boy"}.get(sex))
    return _Subject(phrase, hero, plot=rng.choice(subject_plots.PAIR_PLOTS), pair=pair)


def _mood(rng: random.Random) -> _Subject:
    mood = rng.choice(list(subject_plots.MOOD_PLOTS))
    hero = make_hero(rng)
    phrase = f"a {hero.kind}" if rng.random() < 0.4 else ""
    return _Subject(phrase, hero, plot=rng.choice(subject_plots.MOOD_PLOTS[mood]), mood=mood)


def _companion(hero: Hero) -> str:
    """Always the same one: two names that a small model can tell apart."""
    names = _GIRLS if hero.female else words.BOYS
    return names[(names.index(hero.name) + len(names) // 2) % len(names)]


def _more_than_hero(asked: _Subject) -> bool:
    return not asked.phrase.endswith((asked.hero.kind, asked.hero.name))


_SUBJECTS: dict[Callable[[random.Random], _Subject], float] = {
    _somebody: 0.29, _something: 0.13, _sight: 0.11, _weather: 0.10, _event: 0.08, _theme: 0.17, _pair: 0.07, _mood: 0.05,
}  # fmt: skip
"""What stories are asked to be about, and how often."""


def tell(rng: random.Random) -> Story:
    """One story on a random subject, seven to nine sentences long."""
    (kind,) = rng.choices(list(_SUBJECTS), list(_SUBJECTS.values()))
    asked = kind(rng)
    a, place = asked.hero, asked.place
    b = asked.other or make_hero(rng, unlike=a)
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
        "C": _companion(a) if asked.pair else "",
        "pair": asked.pair,
        "S": asked.told or f"a {asked.thing}",
        "s": asked.thing or asked.told,
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
    openings = subject_plots.PAIR_OPENINGS if asked.pair else OPENINGS
    lead = (
        "" if asked.mood or asked.pair or not _more_than_hero(asked) else rng.choice(_LEADS).format(phrase=asked.phrase)
    )
    beats = [lead, rng.choice(openings), *(rng.choice(beat) for beat in plot.beats)]
    if not asked.pair and not asked.mood and rng.random() < 0.5:
        beats.append(rng.choice(ENDINGS if plot in PLOTS.values() else SOLO_ENDINGS))
    text = " ".join(capitalise(beat.format(**slots)) for beat in beats if beat)
    return Story(fix_articles(asked.phrase), fix_articles(text), a, asked.mood)

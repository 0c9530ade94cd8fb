"""Exchanges of several turns in which the user says something about themselves, now and then corrects it, and asks for
it later.

Half of the names and places are made up on the spot, so that what is learnt is to look back, not to guess.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dsv3rt_train.data import words
from dsv3rt_train.data.facts import CAPITALS, capitalise, fix_articles

Turns = list[tuple[str, str]]

_SYLLABLES = "ba bo da do fi ga go gri ka ki klo la lo lu ma mi mo na no pa plo po qua ra ri ro sa so ta to tri va vo wi xa za zo zu".split()
_CLOSINGS = "n r l s t m k nd rt ld".split()
_MORE_NAMES = tuple(
    """Ahmed Aisha Akira Amir Angela Ben Bella Carlos Carol Chen Chloe Claire Dan Diana Diego Elena Elias Emily Erik Fatima Frank Gabriel Hans Hassan
    Ian Igor Ines Isabel Ivan Jan Jasmine Jenny Jim Joan Joe Johanna Jose Julian Karl Karen Kevin Kim Leila Linda Lisa Louis Lukas Magda Marco Mario
    Mary Matt Melissa Mike Mohammed Monica Natalie Nadia Omar Pablo Pam Pedro Phil Priya Rachel Ravi Rebecca Rita Roberto Ron Ryan Samir Sandra
    Alexander Alexandra Anastasia Annabelle Anthony Arabella Archibald Augustine Bartholomew Beatrice Benedict Benjamin Bernadette Bernhard Brigitte Cassandra
    Catherine Charlotte Christina Christopher Clementine Constantin Cornelia Dominique Elisabeth Emmanuel Esmeralda Evangeline Federico Ferdinand Florentine
    Francesca Frederick Friederike Genevieve Giovanni Gottfried Gwendolyn Heinrich Henrietta Hildegard Ignatius Jacqueline Jonathan Josephine Katharina
    Konstantin Leonardo Leopold Ludwig Magdalena Marguerite Maximilian Mirabelle Montgomery Nathaniel Nikolaus Octavia Penelope Persephone Philippa
    Rosalind Sebastian Siegfried Stephanie Theodore Thomas Valentina Veronica Wilhelmina Winifred Wolfgang Zacharias
    Sarah Sean Sergio Sonia Stefan Steve Susan Tanya Ted Theresa Tim Tony Ursula Vincent Walter Wei Will Yuki Yusuf""".split()
)
_PETS = ("dog", "cat", "horse", "rabbit", "bird", "mouse", "parrot", "hamster", "turtle", "fish")
_PET_NAMES = (
    "Rex",
    "Bello",
    "Luna",
    "Fluffy",
    "Max",
    "Bruno",
    "Kitty",
    "Coco",
    "Snowball",
    "Rocky",
    "Simba",
    "Tiger",
    "Buddy",
    "Charlie",
    "Lucky",
)
_RELATIVES = (
    "sister",
    "brother",
    "mother",
    "father",
    "friend",
    "son",
    "daughter",
    "teacher",
    "neighbor",
    "wife",
    "husband",
)


def nonsense(rng: random.Random) -> str:
    """A word that means nothing: open syllables, now and then a closed one."""
    return "".join(
        rng.choice(_SYLLABLES) + (rng.choice(_CLOSINGS) if rng.random() < 0.25 else "")
        for _ in range(rng.randint(2, 4))
    )


def any_name(rng: random.Random) -> str:
    """A first name: a known, a rarer or a made-up one."""
    roll = rng.random()
    if roll < 0.4:
        return rng.choice(words.NAMES)
    return rng.choice(_MORE_NAMES) if roll < 0.7 else capitalise(nonsense(rng))


def _city(rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.4:
        return rng.choice(words.CITIES)
    return rng.choice(tuple(CAPITALS.values())) if roll < 0.75 else capitalise(nonsense(rng))


def _pet_name(rng: random.Random) -> str:
    return rng.choice(_PET_NAMES) if rng.random() < 0.5 else any_name(rng)


@dataclass(frozen=True)
class _Matter:
    """Something one may say about oneself. {v} is what is said, {o} what was said before, {k} a word that goes with it
    (which pet, which relative)."""

    says: tuple[str, ...]
    replies: tuple[str, ...]
    asks: tuple[str, ...]
    answer: str
    missing: str
    corrections: tuple[str, ...]
    value: Callable[[random.Random], str]
    kinds: Sequence[str] = ("",)


def _of(*values: str) -> Callable[[random.Random], str]:
    return lambda rng: rng.choice(values)


def _favorite(topic: str) -> _Matter:
    return _Matter(
        (f"My favorite {topic} is {{v}}.", f"I like {{v}} best. It is my favorite {topic}.", f"{{v}} is my favorite {topic}."),
        ("That is a good choice!", "{v} is a good choice.", "I will remember that.", "Good to know."),
        (f"What is my favorite {topic}?", f"Do you remember my favorite {topic}?", f"Which {topic} do I like best?", f"What's my favorite {topic}?"),
        f"Your favorite {topic} is {{v}}.", f"You have not told me your favorite {topic}.",
        (f"No, my favorite {topic} is {{v}}.", f"Actually, my favorite {topic} is {{v}}.", f"Sorry, I meant {{v}}. My favorite {topic} is {{v}}."),
        _of(*words.FAVORITES[topic]),
    )  # fmt: skip


_MATTERS: dict[str, _Matter] = {
    "name": _Matter(
        ("My name is {v}.", "I am {v}.", "Hello, I am {v}.", "Hi, my name is {v}.", "I'm {v}.", "Call me {v}.", "Hi, I'm {v}.", "Hello! My name is {v}.",
         "You can call me {v}.", "My friends call me {v}.", "hi im {v}", "my name is {v}", "{v} is my name.", "Hey, this is {v}."),
        ("Nice to meet you, {v}!", "Hello, {v}! How can I help you?", "Hi, {v}! Nice to meet you.", "Hello, {v}! It is nice to meet you."),
        ("What is my name?", "Do you remember my name?", "Who am I?", "What's my name?", "Do you know my name?", "Do you still know my name?",
         "Can you tell me my name?", "Tell me my name.", "what was my name", "How am I called?", "Do you know who I am?", "And what is my name?"),
        "Your name is {v}.", "You have not told me your name.",
        ("No, my name is {v}.", "My name is not {o}, it is {v}.", "Actually, my name is {v}.", "Sorry, I meant {v}.", "That is wrong, my name is {v}.",
         "No, I am {v}.", "Call me {v} instead."),
        any_name),
    "city": _Matter(
        ("I live in {v}.", "I am from {v}.", "My home is {v}.", "I come from {v}.", "I'm from {v}.", "My city is {v}.", "I live in the city of {v}.", "i live in {v}"),
        ("{v} is a nice city.", "{v} sounds like a nice place.", "I would like to see {v} one day."),
        ("Where do I live?", "Which city do I live in?", "Where is my home?", "Where am I from?", "Do you remember where I live?", "In which city do I live?",
         "where do i live"),
        "You live in {v}.", "You have not told me where you live.",
        ("No, I live in {v}.", "Actually, I live in {v}.", "Not {o}, I live in {v}.", "I have moved to {v}.", "Sorry, I meant {v}."),
        _city),
    "pet": _Matter(
        ("I have a {k} named {v}.", "My {k} is called {v}.", "I have a {k}. Its name is {v}.", "My {k}'s name is {v}.", "This is my {k} {v}.", "We have a {k} called {v}."),
        ("{v} is a nice name for a {k}.", "{v} is a lovely name!", "I am sure that {v} is a good {k}."),
        ("What is the name of my {k}?", "What is my {k} called?", "What is my {k}'s name?", "Do you remember the name of my {k}?", "What's my {k}'s name?"),
        "Your {k} is called {v}.", "You have not told me about a {k}.",
        ("No, my {k} is called {v}.", "Actually, the name of my {k} is {v}.", "Not {o}. My {k} is called {v}."),
        _pet_name, _PETS),
    "relative": _Matter(
        ("My {k} is called {v}.", "My {k}'s name is {v}.", "The name of my {k} is {v}.", "I have a {k} named {v}."),
        ("{v} is a nice name.", "Say hello to {v}!", "I see. {v} is your {k}."),
        ("What is the name of my {k}?", "What is my {k} called?", "What is my {k}'s name?", "Do you remember my {k}'s name?"),
        "Your {k} is called {v}.", "You have not told me the name of your {k}.",
        ("No, my {k} is called {v}.", "Actually, my {k}'s name is {v}.", "Not {o}. My {k} is called {v}."),
        any_name, _RELATIVES),
    "job": _Matter(
        ("I am a {v}.", "I work as a {v}.", "My job is {v}.", "I'm a {v}."),
        ("That is an interesting job.", "That is a good job.", "Being a {v} must be interesting."),
        ("What is my job?", "What do I do?", "What is my work?", "Do you remember my job?", "What do I work as?"),
        "You are a {v}.", "You have not told me your job.",
        ("No, I am a {v}.", "Actually, I am a {v}.", "I am not a {o}, I am a {v}."),
        _of(*words.JOBS)),
    "age": _Matter(
        ("I am {v} years old.", "I'm {v} years old.", "My age is {v}.", "i am {v} years old"),
        ("That is a good age.", "{v} is a good age.", "I see, you are {v} years old."),
        ("How old am I?", "What is my age?", "Do you remember how old I am?", "Do you know my age?"),
        "You are {v} years old.", "You have not told me how old you are.",
        ("No, I am {v} years old.", "Actually, I am {v}.", "Not {o}, I am {v} years old."),
        lambda rng: str(rng.randint(5, 95))),
    "number": _Matter(
        ("Remember the number {v}.", "My lucky number is {v}.", "Please remember this number: {v}.", "The number is {v}."),
        ("I will remember the number {v}.", "All right, {v}.", "Okay, the number is {v}."),
        ("Which number did I tell you?", "What was the number?", "What is the number?", "Do you remember the number?", "Which number should you remember?"),
        "The number is {v}.", "You have not told me a number.",
        ("No, the number is {v}.", "Actually, the number is {v}.", "Not {o}. The number is {v}."),
        lambda rng: str(rng.randint(1, 999))),
    "word": _Matter(
        ("Remember the word {v}.", "The secret word is {v}.", "Please remember this word: {v}.", "The password is {v}."),
        ("I will remember the word {v}.", "All right, the word is {v}.", "Okay, {v}."),
        ("Which word did I tell you?", "What was the word?", "What is the secret word?", "Do you remember the word?"),
        "The word is {v}.", "You have not told me a word.",
        ("No, the word is {v}.", "Actually, the word is {v}.", "Not {o}. The word is {v}."),
        lambda rng: rng.choice((*words.OBJECTS, *words.ANIMALS)) if rng.random() < 0.6 else nonsense(rng)),
    "owns": _Matter(
        ("I have a {v}.", "I bought a {v}.", "Today I got a {v}.", "I have a new {v}."),
        ("That is nice!", "A {v} is a good thing to have.", "Enjoy your {v}!"),
        ("What do I have?", "What did I buy?", "What did I get?", "Do you remember what I have?"),
        "You have a {v}.", "You have not told me what you have.",
        ("No, I have a {v}.", "Actually, it is a {v}.", "Not a {o}, I have a {v}."),
        lambda rng: f"{rng.choice(words.COLORS)} {rng.choice(words.OBJECTS)}" if rng.random() < 0.6 else rng.choice(words.OBJECTS)),
    **{f"favorite {topic}": _favorite(topic) for topic in words.FAVORITES},
}  # fmt: skip
_OFTEN = {"name": 6.0, "city": 2.5, "pet": 2.5}
_UNDERSTOOD = ("I see. {answer}", "Thank you. {answer}", "Sorry! {answer}", "All right. {answer}")


@dataclass
class _Said:
    """One matter in one conversation, and its latest value."""

    name: str
    matter: _Matter
    kind: str
    value: str

    def fill(self, template: str, old: str = "") -> str:
        text = template.format(v=self.value, o=old, k=self.kind)
        return fix_articles(text if text[:2].islower() and template[:1].islower() else capitalise(text))


def _pick(rng: random.Random, count: int) -> list[_Said]:
    names = list(_MATTERS)
    chosen: dict[str, _Said] = {}
    while len(chosen) < count:
        name = rng.choices(names, [_OFTEN.get(name, 1.0) for name in names])[0]
        matter = _MATTERS[name]
        # two dogs, or a dog and a horse: never the same word twice
        kind = rng.choice(matter.kinds)
        value = matter.value(rng)
        if rng.random() < 0.06:
            value = value.lower()
        chosen.setdefault(f"{name} {kind}", _Said(name, matter, kind, value))
    return list(chosen.values())


def remember(rng: random.Random, distract: Callable[[random.Random], Turns]) -> Turns:
    """One to three matters said, other talk between (from `distract`), and one or two questions about them."""
    said = _pick(rng, rng.choices((1, 2, 3), (0.62, 0.28, 0.10))[0])
    turns: Turns = []
    separate = said
    if len(said) > 1 and rng.random() < 0.35:
        first, second = (one.fill(rng.choice(one.matter.says)) for one in said[:2])
        rest = second if second.startswith("I") else second[:1].lower() + second[1:]
        turns.append((f"{first.rstrip('.!')} and {rest}", said[1].fill(rng.choice(said[1].matter.replies))))
        separate = said[2:]
    for one in separate:
        turns.append((one.fill(rng.choice(one.matter.says)), one.fill(rng.choice(one.matter.replies))))
        if rng.random() < 0.12:
            turns += distract(rng)[:1]
        if rng.random() < 0.15:
            old = one.value
            while one.value == old:
                one.value = one.matter.value(rng)
            answer = one.fill(one.matter.answer)
            turns.append(
                (one.fill(rng.choice(one.matter.corrections), old), rng.choice(_UNDERSTOOD).format(answer=answer))
            )
    for _ in range(rng.choices((0, 1, 2, 3), (0.40, 0.32, 0.18, 0.10))[0]):
        turns += distract(rng)[:1]
    for one in rng.sample(said, min(len(said), rng.choice((1, 1, 2)))):
        turns.append((one.fill(rng.choice(one.matter.asks)), one.fill(one.matter.answer)))
    if rng.random() < 0.12:
        turns.append(_never_said(rng, {one.name for one in said}))
    return turns


def never_told(rng: random.Random) -> Turns:
    """A question about the user at the beginning, before anything was said; then they may say it."""
    name = rng.choice(list(_MATTERS))
    matter = _MATTERS[name]
    one = _Said(name, matter, rng.choice(matter.kinds), matter.value(rng))
    turns = [(one.fill(rng.choice(matter.asks)), one.fill(matter.missing))]
    if rng.random() < 0.5:
        turns.append((one.fill(rng.choice(matter.says)), one.fill(rng.choice(matter.replies))))
        turns.append((one.fill(rng.choice(matter.asks)), one.fill(matter.answer)))
    return turns


def _never_said(rng: random.Random, said: set[str]) -> tuple[str, str]:
    name = rng.choice([name for name in _MATTERS if name not in said])
    one = _Said(name, _MATTERS[name], rng.choice(_MATTERS[name].kinds), "")
    return one.fill(rng.choice(one.matter.asks)), one.fill(one.matter.missing)


_REPEAT = ("Repeat after me: {w}", "Say {w}", "Please repeat: {w}", "Repeat: {w}", "Say this: {w}", "Please say {w}", "Copy this: {w}", "repeat {w}",
           "Write {w}", "Can you say {w}?")  # fmt: skip
_SAID = ("What did I say?", "What did I just say?", "Say it again.", "Once more.", "Repeat that.", "Again, please.")


def repeat(rng: random.Random) -> Turns:
    """Words to be said again. Not much use by itself, but the shortest way to learn to look back."""
    spoken = " ".join(_any_word(rng) for _ in range(rng.choice((1, 1, 2, 3, 4, 6, 8, 12, 16))))
    turns = [(rng.choice(_REPEAT).format(w=spoken), spoken)]
    if rng.random() < 0.3:
        turns.append((rng.choice(_SAID), spoken))
    return turns


def _any_word(rng: random.Random) -> str:
    kind = rng.randrange(6)
    if kind == 0:
        return any_name(rng)
    if kind == 1:
        return nonsense(rng)
    if kind == 2:
        return str(rng.randint(0, 999))
    if kind == 3:
        return _city(rng)
    return rng.choice(
        (*words.OBJECTS, *words.ANIMALS, *words.PLACES, *words.PEOPLE, *words.TRAITS, *words.COLORS, *words.JOBS)
    )

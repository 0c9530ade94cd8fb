"""The bundled checkpoint's diet: which kinds of conversation, how many of each, and what is held out of training.

A conversation is a list of messages as chat templates take them. Held out are: one pair of summands in twelve; for
every fact and gloss the question forms that `is_held_out` picks (the fact itself is learnt from its other forms); and
everything drawn from the held-out seed, such as stories.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dsv3rt_train.data import arithmetic, chatterbot, countries, examples, glosses, memory, stories, talk
from dsv3rt_train.data.facts import SINGLE, TOPICS, capitalise, fix_articles, is_held_out
from dsv3rt_train.data.nouns import PLURAL, UNIQUE

Message = dict[str, str]
Turns = talk.Turns

_GLOSS_FORMS = (
    "What is {x}?",
    "What's {x}?",
    "Tell me what {x} is.",
    "Do you know what {x} is?",
    "Explain what {x} is.",
    "Can you explain what {x} is?",
    "What does the word {w} mean?",
    "What is the meaning of {w}?",
    "Define {w}.",
    "Tell me about {x}.",
    "What do you know about {x}?",
)

WEIGHTS: dict[str, float] = {
    "story": 0.20, "sum": 0.055, "follow_up_sum": 0.05, "numbers": 0.055, "gloss": 0.12, "fact": 0.065, "single": 0.025, "comparison": 0.05,
    "follow_up_fact": 0.04, "remember": 0.08, "repeat": 0.04, "greeting": 0.02, "small_talk": 0.035, "identity": 0.025, "unknown": 0.07, "chatterbot": 0.005,
    "example": 0.03, "country": 0.025, "both": 0.01,
}  # fmt: skip
"""Share of each kind among the exchanges drawn."""
_PLAIN = 0.02
"""Share of stories without a conversation around them: how to go on with "Once upon a time"."""


def messages(turns: Turns) -> list[Message]:
    """The turns as a chat template takes them."""
    result: list[Message] = []
    for user, assistant in turns:
        result += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return result


def gloss_exchange(gloss: glosses.Gloss, form: str) -> tuple[str, str]:
    """A noun asked for in one of the forms, and its gloss."""
    noun = gloss.noun
    phrase = noun if gloss.mass or noun in PLURAL else f"the {noun}" if noun in UNIQUE else glosses.article(noun)
    verb = "are" if noun in PLURAL else "is"
    question = form.format(x=phrase, w=noun)
    if noun in PLURAL:
        question = question.replace("What is ", "What are ", 1) if "meaning" not in question else question
        question = question.replace(f"{noun} is", f"{noun} are").replace("What's", "What are")
    return question, f"{capitalise(phrase)} {verb} {gloss.text}."


@dataclass(frozen=True)
class Sources:
    """What is read from other packages."""

    glosses: list[glosses.Gloss]
    pairs: list[tuple[str, str]]
    rare_nouns: list[str]

    @staticmethod
    def read(wordnet: Path, chatterbot_folder: Path | None = None) -> Sources:
        known = glosses.read_glosses(wordnet)
        pairs = chatterbot.read_pairs(chatterbot_folder or chatterbot.corpus_folder())
        return Sources(known, pairs, glosses.rare_nouns(wordnet, known))


class Mixture:
    """Draws conversations. Everything follows from the sources and the random generator it is given."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.glosses, self.held_out_glosses = self._split(
            [gloss_exchange(gloss, form) for gloss in sources.glosses for form in _GLOSS_FORMS]
        )
        self.facts, self.held_out_facts = self._split(
            [
                (fix_articles(form.format(a=a, b=b)), capitalise(fix_articles(topic.answer.format(a=a, b=b))))
                for topic in TOPICS
                for a, b in topic.rows.items()
                for form in topic.questions
            ]
        )
        self.singles = list(SINGLE.items())
        self.kinds: dict[str, Callable[[random.Random], Turns]] = {
            "story": talk.story,
            "sum": talk.sum_once,
            "follow_up_sum": arithmetic.follow_up,
            "numbers": arithmetic.number_talk,
            "comparison": talk.comparison,
            "gloss": lambda rng: self._asked(rng, self.glosses),
            "fact": lambda rng: self._asked(rng, self.facts),
            "single": lambda rng: self._asked(rng, self.singles),
            "follow_up_fact": talk.follow_up_fact,
            "remember": talk.remember,
            "repeat": memory.repeat,
            "greeting": talk.greeting,
            "small_talk": talk.small_talk,
            "identity": talk.identity,
            "unknown": lambda rng: self._rare(rng) if rng.random() < 0.4 else talk.unknown(rng),
            "chatterbot": lambda rng: self._asked(rng, sources.pairs),
            "example": lambda rng: self._varied(rng, examples.ask(rng)),
            "country": lambda rng: self._varied(rng, countries.ask(rng)),
            "both": self._both,
        }

    @staticmethod
    def _split(exchanges: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        return [e for e in exchanges if not is_held_out(e[0])], [e for e in exchanges if is_held_out(e[0])]

    def _rare(self, rng: random.Random) -> Turns:
        noun = rng.choice(self.sources.rare_nouns)
        form = rng.choice(_GLOSS_FORMS)
        question = form.format(x=glosses.article(noun) if rng.random() < 0.7 else noun, w=noun)
        return [(talk.vary(rng, question), rng.choice(talk.UNKNOWN_ANSWERS))]

    def _both(self, rng: random.Random) -> Turns:
        """Two questions at once."""
        (first, answer), (second, other) = (
            rng.choice(rng.choice((self.glosses, self.facts, self.singles, [talk.sum_once(rng)[0]]))) for _ in range(2)
        )
        joined = f"{first} {second}" if rng.random() < 0.4 else f"{first} And {second[:1].lower()}{second[1:]}"
        return [(joined, f"{answer} {other}")]

    def _asked(self, rng: random.Random, exchanges: list[tuple[str, str]]) -> Turns:
        return self._varied(rng, rng.choice(exchanges))

    @staticmethod
    def _varied(rng: random.Random, exchange: tuple[str, str]) -> Turns:
        question, answer = exchange
        varied = talk.vary(rng, question)
        return [(question if is_held_out(varied) else varied, answer)]

    def draw(self, rng: random.Random) -> list[Message]:
        """One conversation: mostly one exchange, now and then two or three on different matters."""
        names, weights = list(WEIGHTS), list(WEIGHTS.values())
        turns = self.kinds[rng.choices(names, weights)[0]](rng)
        while rng.random() < 0.2 and len(turns) < 5:
            turns = turns + self.kinds[rng.choices(names, weights)[0]](rng)
        return messages(turns)

    def conversations(self, seed: int, count: int) -> Iterator[list[Message]]:
        """`count` training conversations."""
        rng = random.Random(seed)
        for _ in range(count):
            yield self.draw(rng)

    def documents(self, seed: int, count: int) -> Iterator[list[Message] | str]:
        """The same, a few of them replaced by the plain text of a story."""
        rng = random.Random(f"plain {seed}")
        for conversation in self.conversations(seed, count):
            yield stories.tell(rng).text if rng.random() < _PLAIN else conversation

    def held_out(self, seed: int, count: int) -> dict[str, list[list[Message]]]:
        """Up to `count` held-out conversations of each kind, none of which training draws (small talk and the like
        excepted:
        there, only the draw is new)."""
        rng = random.Random(seed)
        sets: dict[str, list[list[Message]]] = {}
        sums = [arithmetic.exercise(rng, held_out=True) for _ in range(count)]
        sets["arithmetic"] = [messages([(s.question, s.answer)]) for s in sums]
        for name, exchanges in (("glosses", self.held_out_glosses), ("facts", self.held_out_facts)):
            sets[name] = [messages([e]) for e in rng.sample(exchanges, min(count, len(exchanges)))]
        for name in sorted(WEIGHTS.keys() - {"gloss", "fact", "chatterbot"}):
            sets[name] = [messages(self.kinds[name](rng)) for _ in range(count)]
        sets["mixed"] = [self.draw(rng) for _ in range(count)]
        return sets


def write_jsonl(path: Path, documents: Iterable[list[Message] | str]) -> int:
    """One {"messages": [...]} or {"text": ...} a line. Returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for document in documents:
            record = {"text": document} if isinstance(document, str) else {"messages": document}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def write_recipe(folder: Path, sources: Sources, *, seed: int, conversations: int, held_out: int) -> None:
    """`folder`/train.jsonl and `folder`/heldout/KIND.jsonl."""
    (folder / "heldout").mkdir(parents=True, exist_ok=True)
    mixture = Mixture(sources)
    write_jsonl(folder / "train.jsonl", mixture.documents(seed, conversations))
    for name, items in mixture.held_out(seed + 1, held_out).items():
        write_jsonl(folder / "heldout" / f"{name}.jsonl", items)

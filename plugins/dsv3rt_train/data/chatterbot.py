"""Short question-answer pairs of `chatterbot-corpus` (BSD): small talk and trivia, without its coding and
technical files."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from dsv3rt.errors import UserError
from dsv3rt_train.data.facts import capitalise

TOPICS = (
    "conversations",
    "greetings",
    "food",
    "trivia",
    "science",
    "sports",
    "movies",
    "literature",
    "history",
    "money",
)
"""The files used; coding, tech_support, computers, ai and botprofile speak of another programme."""
MAX_WORDS = 14
_UNFIT = frozenset(
    "testicles sex sexual drugs programmer software hardware lisp stupid hate drunk hal die dead death kill".split()
)


def corpus_folder() -> Path:
    """Where the installed package keeps its English files. Raises UserError if it is not installed."""
    spec = importlib.util.find_spec("chatterbot_corpus")
    if spec is None or spec.origin is None:
        raise UserError("the package chatterbot-corpus is not installed", fix="pip install chatterbot-corpus pyyaml")
    return Path(spec.origin).parent / "data" / "english"


def read_pairs(folder: Path) -> list[tuple[str, str]]:
    """First question and first answer of every conversation that is short enough, as sentences."""
    import yaml

    pairs: dict[str, str] = {}
    for topic in TOPICS:
        document: dict[str, Any] = yaml.safe_load((folder / f"{topic}.yml").read_text(encoding="utf-8"))
        for conversation in document["conversations"]:
            if len(conversation) < 2 or not all(isinstance(line, str) for line in conversation[:2]):
                continue
            question, answer = (" ".join(line.split()) for line in conversation[:2])
            if (
                not 0 < len(answer.split()) <= MAX_WORDS
                or len(question.split()) > 2 * MAX_WORDS
                or not answer.isascii()
            ):
                continue
            if _UNFIT & set(question.lower().split()) | _UNFIT & set(answer.lower().strip(".!?").split()):
                continue
            if "human" in answer or "robot" in answer or "bot" in answer.lower().split():
                continue
            answer = capitalise(answer)
            pairs.setdefault(question, answer if answer[-1] in ".!?" else answer + ".")
    return list(pairs.items())

"""Short glosses of common nouns, read from WordNet's own database files (Debian's `wordnet-base` installs them)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dsv3rt.errors import UserError
from dsv3rt_train.data.nouns import COMMON_NOUNS, OWN_GLOSSES

_LEXICOGRAPHER_FILES = (
    "adj.all adj.pert adv.all Tops act animal artifact attribute body cognition communication event feeling food group "
    "location motive object person phenomenon plant possession process quantity relation shape state substance time"
).split()
"""Names of the lexicographer files by number, from WordNet's lexnames(5)."""

MAX_WORDS = 15
"""Longer glosses are left out: nobody reads them in a chat, and a small model cannot hold them."""

_ARTICLES = frozenset("a an the one something someone where your each in two either any that".split())

_FILLER = re.compile(
    r"\b(usually|typically|especially|generally|chiefly|primarily|often|mostly|normally|relatively|usu\.|etc\.?)\s+"
)
_ANY_OF = re.compile(r"^any of (?:various|several|numerous|many|a number of|the|certain)?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Gloss:
    """One noun explained."""

    noun: str
    text: str
    """Begins with an article or "one of", ends without a full stop."""
    mass: bool
    kind: str
    """Name of WordNet's lexicographer file: animal, food, ..."""


def article(words: str) -> str:
    """`words` with "a" or "an" in front."""
    lower = words.lower()
    vowel = lower[0] in "aeiou" and not lower.startswith(("uni", "use", "eu", "one"))
    return ("an " if vowel or lower.startswith("hour") else "a ") + words


def shorten(definition: str, *, mass: bool) -> str | None:
    """A dictionary definition cut to its first clause and given an article; None if it is still too long."""
    text = re.sub(r"\s*\([^)]*\)", "", definition.split('"')[0])
    text = re.split(r"[;:]", text)[0].strip().rstrip(" ,.`'")
    text = re.sub(r"\s+", " ", _FILLER.sub("", text))
    words = text.split()
    if len(words) > MAX_WORDS and "," in text:
        text = text.split(",")[0].strip()
    if len(text.split()) > MAX_WORDS:
        for joint in (" having ", " with ", " that ", " which ", " and ", " or "):
            head = text.split(joint)[0]
            if 5 <= len(head.split()) <= MAX_WORDS:
                text = head
                break
    if not 2 <= len(text.split()) <= MAX_WORDS or "`" in text:
        return None
    text = text[0].lower() + text[1:] if not text[:2].isupper() else text
    many = _ANY_OF.match(text)
    if many:
        return f"one of the {text[many.end() :]}"
    first = text.split()[0]
    if first in _ARTICLES or mass:
        return text
    clauses = re.split(
        r" (?:that|with|of|having|used|for|in|on|from|to|which|who|whose|where|made|covering|giving|raised|by) ", text
    )
    noun = clauses[0].split()[-1]
    plural = noun.endswith("s") and not noun.endswith(("ss", "us", "is"))
    return f"one of the {text}" if plural else article(text)


def _senses(folder: Path) -> dict[str, list[str]]:
    senses: dict[str, list[str]] = {}
    with (folder / "index.noun").open() as index:
        for line in index:
            if not line.startswith(" "):
                fields = line.split()
                senses[fields[0]] = fields[-int(fields[2]) :]
    return senses


def read_glosses(folder: Path) -> list[Gloss]:
    """The common nouns' glosses from WordNet database files in `folder`. Raises UserError if they are not there."""
    if not (folder / "data.noun").is_file():
        raise UserError(
            f"{folder} has no WordNet files (data.noun)", fix="install Debian's wordnet-base, or name the folder"
        )
    senses = _senses(folder)
    found: dict[str, Gloss] = {}
    with (folder / "data.noun").open("rb") as data:
        for kind, nouns in COMMON_NOUNS.items():
            number = _LEXICOGRAPHER_FILES.index(kind)
            for entry in nouns:
                noun, _, rank = entry.rstrip("*").partition("#")
                definitions = []
                for offset in senses.get(noun, []):
                    data.seek(int(offset))
                    line = data.readline().decode()
                    if int(line.split()[1]) == number:
                        definitions.append(line.split("| ", 1)[1].strip())
                if len(definitions) >= int(rank or 1) and noun not in found:
                    mass = entry.endswith("*")
                    text = shorten(definitions[int(rank or 1) - 1], mass=mass)
                    if text and noun not in OWN_GLOSSES:
                        found[noun] = Gloss(noun, text, mass, kind)
                if noun in OWN_GLOSSES:
                    found[noun] = Gloss(noun, OWN_GLOSSES[noun], entry.endswith("*"), kind)
    return list(found.values())


def rare_nouns(folder: Path, known: list[Gloss]) -> list[str]:
    """Nouns of WordNet that are not explained: what the model is to say that it does not know."""
    common = {entry.rstrip("*").partition("#")[0] for nouns in COMMON_NOUNS.values() for entry in nouns} | {
        gloss.noun for gloss in known
    }
    return sorted(
        noun
        for noun in _senses(folder)
        if noun.isascii() and noun.isalpha() and 5 <= len(noun) <= 14 and noun not in common
    )

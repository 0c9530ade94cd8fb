"""Greedy text with drafts against the same text without: token by token, and cache by cache.

    python tests/mtp/identity.py CHECKPOINT --tokens 20000 [--compile wait] [--drafts 1,2,4,auto]

prints what was compared. The texts of one count of drafts go on in one conversation, as in a chat: rejections, rewinds
and growing contexts lie behind most of them. So do those without drafts, since prompts are read in pieces and more than
16 tokens at once may round otherwise than fewer.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import dsv3rt
from dsv3rt.generate.sampling import Sampler, SamplingParams
from dsv3rt.generate.sequence import Sequence as Tokens
from dsv3rt.generate.speculation import Speculator
from dsv3rt.generate.steps import plain_steps

GREEDY = SamplingParams(temperature=0)
LENGTHS = (3, 40, 120, 250, 17, 1)
"""Tokens of the prompts, in turn."""


@dataclass
class Compared:
    """What was found equal."""

    tokens: int = 0
    """Of the texts without drafts; each was compared with one text for every count of drafts."""
    accepted: int = 0
    rejected: int = 0
    cached: int = 0
    """Positions whose caches were compared, all counts together."""


def prompts(vocabulary: int, seed: int = 0) -> Iterator[tuple[list[int], int]]:
    """(prompt, tokens to generate), for ever: some begin as the one before went on, some afresh."""
    draw = random.Random(seed)
    before: list[int] = []
    for i, length in enumerate(itertools.cycle(LENGTHS)):
        fresh = [draw.randrange(vocabulary) for _ in range(length)]
        before = fresh if i % 2 == 0 else [*before, *fresh]
        yield list(before), draw.choice((30, 100, 300))


def plain(sequence: Tokens, prompt: Sequence[int], count: int, lookback: int) -> list[int]:
    """`count` tokens without drafts, the prompt read from where a conversation with drafts reads it."""
    sequence.reuse(prompt, lookback)
    logits, _ = sequence.extend(prompt[len(sequence.token_ids) :])
    steps = plain_steps(sequence, logits[-1], Sampler(GREEDY))
    return [step[0].token_id for step in itertools.islice(steps, count)]


def drafted(speculator: Speculator, prompt: Sequence[int], count: int, drafts: int | str) -> list[int]:
    """At least `count` tokens, in a conversation that goes on."""
    cached = speculator.reuse(prompt)
    logits_V = speculator.read(prompt[cached:])
    counter = speculator.counter(drafts, repeatable=False)
    tokens: list[int] = []
    for step in speculator.steps(logits_V, Sampler(GREEDY), counter):
        tokens.extend(settled.token_id for settled in step)
        if len(tokens) >= count:
            break
    return tokens


def compare(
    runtime: dsv3rt.Runtime, total: int, drafts: Sequence[int | str], *, given: Sequence[Sequence[int]] = ()
) -> Compared:
    """Compare at least `total` tokens, from the prompts `given` and then random ones. Raises AssertionError."""
    capacity = runtime.plan.max_context

    def conversation() -> Tokens:
        return Tokens(runtime.engine, capacity, runtime.plan.device)

    sequence = conversation()
    speculators = {count: Speculator(runtime.head, conversation()) for count in drafts}
    lookback = max(speculator.session.lookback for speculator in speculators.values())
    found = Compared()
    texts = itertools.chain(((list(ids), 100) for ids in given), prompts(runtime.config.vocab_size))
    for prompt, wanted in texts:
        prompt = prompt[-(capacity - wanted - 20) :]
        expected = plain(sequence, prompt, wanted, lookback)
        found.tokens += wanted
        for count, speculator in speculators.items():
            tokens = drafted(speculator, prompt, wanted, count)
            assert tokens[:wanted] == expected, (
                f"{count} drafts, after {len(prompt)} tokens: token {_first_difference(tokens, expected)} differs"
            )
            record = speculator.record
            found.accepted += sum(record.kept)
            found.rejected += sum(record.tried) - sum(record.kept)
            found.cached += _compare_caches(sequence, speculator.sequence, f"{count} drafts")
        if found.tokens >= total:
            return found
    raise AssertionError("prompts never end")


def _first_difference(mine: Sequence[int], theirs: Sequence[int]) -> int:
    return next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b)


def _compare_caches(mine: Tokens, theirs: Tokens, what: str) -> int:
    """Every bit of what both have computed."""
    known = min(mine.computed, theirs.computed)
    assert mine.token_ids[:known] == theirs.token_ids[:known], what
    for layer, (a, b) in enumerate(zip(mine.caches, theirs.caches, strict=True)):
        for part, other in zip(a, b, strict=True):
            assert torch.equal(part[:, :known], other[:, :known]), f"{what}: the caches of layer {layer} differ"
    return known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--tokens", type=int, default=20000)
    parser.add_argument("--compile", default="wait")
    parser.add_argument("--drafts", default="1,2,4,auto")
    parser.add_argument("--head")
    given: Any = parser.parse_args()
    runtime = dsv3rt.load(given.checkpoint, compile=given.compile, head=given.head)
    counts = [int(count) if count.isdigit() else count for count in given.drafts.split(",")]
    found = compare(runtime, given.tokens, counts, given=chats(runtime) if runtime.has_tokenizer else ())
    counters = runtime.engine.counters
    print(f"{given.checkpoint}, compile {given.compile}, drafts {given.drafts}: {found}")
    print(f"calls compiled {counters.compiled}, not {counters.uncompiled}")


def chats(runtime: dsv3rt.Runtime) -> list[list[int]]:
    """Prompts such as the bundled checkpoint was trained on."""
    questions = (
        *(f"What is {a} + {b}?" for a, b in ((34, 27), (5, 9), (61, 18), (70, 2))),
        *(f"What is a {thing}?" for thing in ("lantern", "river", "hammer", "poem", "violin", "bridge")),
        *(f"Tell me a story about {what}." for what in ("a kite", "a patient turtle", "the sea", "two friends")),
        "Who are you, and what can you do?",
        "My name is Ada and I live in Lisbon.",
    )
    render = runtime.chat_format.render
    return [
        runtime.tokenizer.encode(render([{"role": "user", "content": text}]), add_bos=False, allow_special=True)
        for text in questions
    ]


if __name__ == "__main__":
    main()

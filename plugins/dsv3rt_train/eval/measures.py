"""The measures: bits per byte, multiple choice, exact match, and how far one plan's answers are from another's.

Legend: T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dsv3rt.errors import UserError
from dsv3rt.runtime import Runtime
from dsv3rt_train.eval.records import Choice, Question, last_number, normalise

Tick = Callable[[], None]


def _windows(runtime: Runtime, text: str, window: int) -> Iterator[tuple[list[int], int]]:
    """(ids, how many of the last ones are new): each window repeats half of the one before as context."""
    ids = runtime.encode(text)
    start = stop = 0
    while stop < len(ids):
        start = max(0, stop - window // 2)
        first, stop = stop, min(len(ids), start + window)
        yield ids[start:stop], stop - max(first, 1)


def bits_per_byte(runtime: Runtime, texts: Iterable[str], *, window: int, tick: Tick) -> dict[str, Any]:
    """How well the texts are predicted: bits a UTF-8 byte, and perplexity a token."""
    nats, tokens, size = 0.0, 0, 0
    for text in texts:
        for ids, new in _windows(runtime, text, window):
            if new < 1:
                continue
            scores_TV = runtime.logits(ids)[:-1].log_softmax(-1)
            targets_T = torch.tensor(ids[1:], device=scores_TV.device)
            nats -= float(scores_TV.gather(1, targets_T[:, None])[-new:].sum())
            tokens += new
        size += len(text.encode())
        tick()
    if not tokens:
        raise UserError("there is no text to score", fix='name .txt files, or .jsonl with "text"')
    return {
        "bits_per_byte": nats / math.log(2) / size,
        "perplexity": math.exp(nats / tokens),
        "tokens": tokens,
        "bytes": size,
    }


def _score(runtime: Runtime, context: str, ending: str) -> float:
    """Log-likelihood of `ending` after `context`, tokenized together."""
    before, ids = runtime.encode(context), runtime.encode(context + ending)
    shared = 0
    while shared < min(len(before), len(ids) - 1) and before[shared] == ids[shared]:
        shared += 1
    scores_TV = runtime.logits(ids)[:-1].log_softmax(-1)
    targets_T = torch.tensor(ids[1:], device=scores_TV.device)
    return float(scores_TV.gather(1, targets_T[:, None])[max(shared, 1) - 1 :].sum())


def choices(runtime: Runtime, items: Iterable[Choice], *, tick: Tick) -> dict[str, Any]:
    """Accuracy by the likeliest ending, and by the likeliest a byte (`accuracy_per_byte`)."""
    right = right_per_byte = count = 0
    for item in items:
        scores = [_score(runtime, item.context, ending) for ending in item.endings]
        per_byte = [score / len(ending.encode()) for score, ending in zip(scores, item.endings, strict=True)]
        right += scores.index(max(scores)) == item.right
        right_per_byte += per_byte.index(max(per_byte)) == item.right
        count += 1
        tick()
    if not count:
        raise UserError("there are no items", fix="name .jsonl files of multiple-choice items")
    return {"accuracy": right / count, "accuracy_per_byte": right_per_byte / count, "items": count}


def exact_match(runtime: Runtime, questions: Iterable[Question], *, max_tokens: int, tick: Tick) -> dict[str, Any]:
    """Share of greedy answers that equal the expected one, with the first few that do not."""
    right = count = drafted = accepted = 0
    wrong: list[dict[str, str]] = []
    for question in questions:
        # one draft a step: what is accepted of it is the first-draft acceptance
        generation = runtime.chat(question.messages, max_tokens=max_tokens, temperature=0.0, draft_tokens=1)
        if question.number:
            good = last_number(generation.text) == last_number(question.answer)
        else:
            good = normalise(generation.text) == normalise(question.answer)
        right, count = right + good, count + 1
        drafted += generation.speculation.drafted
        accepted += generation.speculation.accepted
        if not good and len(wrong) < 20:
            wrong.append({"asked": question.messages[-1]["content"], "got": generation.text, "wanted": question.answer})
        tick()
    if not count:
        raise UserError("there are no questions", fix="name .jsonl files of questions and answers")
    acceptance = accepted / drafted if drafted else None
    return {"exact_match": right / count, "items": count, "first_draft_acceptance": acceptance, "wrong": wrong}


def samples(
    runtime: Runtime, questions: Iterable[Question], *, max_tokens: int, seed: int, tick: Tick
) -> dict[str, Any]:
    """Answers drawn at the checkpoint's own temperature, to be read, and how much they repeat.

    distinct_3: different three-word sequences over all of them; repeated_sentences: share of sentences that are in
    another answer too; looping: share of answers that say a sentence twice.
    """
    texts: list[dict[str, str]] = []
    for i, question in enumerate(questions):
        generation = runtime.chat(question.messages, max_tokens=max_tokens, seed=seed + i)
        texts.append({"asked": question.messages[-1]["content"], "got": generation.text})
        tick()
    if not texts:
        raise UserError("there are no questions", fix="name .jsonl files of questions and answers")
    return {"items": len(texts), **repetition([text["got"] for text in texts]), "samples": texts}


def repetition(texts: Sequence[str]) -> dict[str, float]:
    """How much texts repeat one another and themselves; see `samples`."""
    grams: list[tuple[str, ...]] = []
    sentences: list[list[str]] = []
    for text in texts:
        words = text.split()
        grams += [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
        sentences.append([part for part in re.split(r"(?<=[.!?])\s+", text) if part])
    seen_in = Counter(sentence for parts in sentences for sentence in set(parts))
    total = sum(map(len, sentences))
    return {
        "distinct_3": len(set(grams)) / max(1, len(grams)),
        "repeated_sentences": sum(seen_in[s] > 1 for parts in sentences for s in parts) / max(1, total),
        "looping": sum(len(set(parts)) < len(parts) for parts in sentences) / max(1, len(texts)),
    }


def compare(base: Runtime, other: Runtime, texts: Iterable[str], *, window: int, tick: Tick) -> dict[str, Any]:
    """KL(base || other) in nats a token, how often their first choices agree, and each one's perplexity."""
    divergence, agree, tokens, nats = 0.0, 0, 0, [0.0, 0.0]
    for text in texts:
        for ids, new in _windows(base, text, window):
            if new < 1:
                continue
            ours_TV, theirs_TV = (_last(runtime, ids, new) for runtime in (base, other))
            divergence += float((ours_TV.exp() * (ours_TV - theirs_TV)).sum())
            agree += int((ours_TV.argmax(-1) == theirs_TV.argmax(-1)).sum())
            targets_T1 = torch.tensor(ids[1:])[-new:, None]
            for i, scores_TV in enumerate((ours_TV, theirs_TV)):
                nats[i] -= float(scores_TV.gather(1, targets_T1).sum())
            tokens += new
        tick()
    if not tokens:
        raise UserError("there is no text to compare on", fix='name .txt files, or .jsonl with "text"')
    return {
        "kl": divergence / tokens,
        "top1_agreement": agree / tokens,
        "perplexity": math.exp(nats[0] / tokens),
        "perplexity_against": math.exp(nats[1] / tokens),
        "tokens": tokens,
    }


def _last(runtime: Runtime, ids: list[int], new: int) -> Tensor:
    """Log probabilities [new, V] of what follows the last `new` positions but the very last."""
    return runtime.logits(ids)[:-1].double().log_softmax(-1)[-new:].cpu()

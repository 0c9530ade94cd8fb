"""From settled tokens to an answer: end of sequence, length, stop strings, whole characters, log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dsv3rt.generate.results import Chunk, FinishReason
from dsv3rt.generate.sampling import TokenLogprobs, token_logprobs
from dsv3rt.generate.steps import Settled
from dsv3rt.generate.text import Detokenizer, StopMatcher
from dsv3rt.interfaces import Tokenizer


class Answer:
    """Collects one answer; iterating `chunks` drives the steps."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        *,
        eos_ids: frozenset[int],
        max_tokens: int,
        stop: Iterable[str] = (),
        logprobs: int | None = None,
    ) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] | None = None if logprobs is None else []
        self.text = ""
        self.finish_reason: FinishReason = "interrupted"
        self._detokenizer = Detokenizer(tokenizer) if tokenizer is not None else None
        self._stop = StopMatcher(tuple(stop))
        self._eos_ids = eos_ids
        self._max_tokens = max_tokens
        self._pending = ""
        self._top = logprobs or 0

    def chunks(self, steps: Iterator[list[Settled]]) -> Iterator[Chunk]:
        """Pieces of text as they become certain; an empty one where a step settled nothing, the prompt being read.

        Closing this generator ends the answer as interrupted.
        """
        for step in steps:
            if step and self._max_tokens == 0:
                self.finish_reason = "length"
                return
            new: list[int] = []
            for settled in step:
                if settled.token_id in self._eos_ids:
                    self.finish_reason = "stop"
                    break
                new.append(settled.token_id)
                self.token_ids.append(settled.token_id)
                if self.logprobs is not None:
                    self.logprobs.append(token_logprobs(settled.logits, settled.token_id, self._top))
                shown = self._show(settled.token_id)
                if shown is None:
                    self.finish_reason = "stop"
                    break
                if len(self.token_ids) >= self._max_tokens:
                    self.finish_reason = "length"
                    break
            done = self.finish_reason != "interrupted"
            piece = self._pending
            self._pending = ""
            if done and self._stop.matched is None:
                piece += self._rest()
            self.text += piece
            if piece or new or not step:
                yield Chunk(
                    piece, tuple(new), logprobs=tuple(self.logprobs[-len(new) :] if self.logprobs and new else ())
                )
            if done:
                return

    def _show(self, token_id: int) -> str | None:
        """Queue the token's text; None once a stop string is complete."""
        if self._detokenizer is None:
            return ""
        text = self._stop.push(self._detokenizer.push([token_id]))
        self._pending += text
        return None if self._stop.matched is not None else text

    def _rest(self) -> str:
        if self._detokenizer is None:
            return ""
        text = self._stop.push(self._detokenizer.flush())
        return text + ("" if self._stop.matched is not None else self._stop.flush())

"""What GET /metrics shows, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dsv3rt.generate.results import Generation
from dsv3rt_serve.turns import Turns

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SPEEDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class Metrics:
    """The counters of one server."""

    def __init__(self, turns: Turns) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by path and HTTP status", ("path", "status"))
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts")
        self._cached = self._counter("prompt_tokens_cached", "Of these, tokens that were in a cache")
        self._answer = self._counter("generated_tokens", "Tokens of answers")
        self._drafted = self._counter("drafted_tokens", "Tokens that were drafted")
        self._accepted = self._counter("accepted_tokens", "Drafts that were accepted")
        self._first = Histogram(
            "dsv3rt_time_to_first_token_seconds", "Reading the prompt", buckets=_SECONDS, registry=self.registry
        )
        self._speed = Histogram(
            "dsv3rt_generated_tokens_per_second", "Speed of an answer", buckets=_SPEEDS, registry=self.registry
        )
        self._gauge("answers_open", "Answers worked on now", lambda: turns.counts[0])
        self._gauge("answers_waiting", "Answers waiting in line now", lambda: turns.counts[1])

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"dsv3rt_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(f"dsv3rt_{name}", text, registry=self.registry).set_function(value)

    def record(self, generation: Generation) -> None:
        """An answer has ended."""
        timings = generation.timings
        self._prompt.inc(len(generation.prompt_token_ids))
        self._cached.inc(len(generation.prompt_token_ids) - timings.prompt_tokens)
        self._answer.inc(len(generation.token_ids))
        self._drafted.inc(generation.speculation.drafted)
        self._accepted.inc(generation.speculation.accepted)
        self._first.observe(timings.ttft_s)
        if timings.gen_tps:
            self._speed.observe(timings.gen_tps)

    def text(self) -> bytes:
        return generate_latest(self.registry)

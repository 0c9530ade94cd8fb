"""What an answer cost, in words: the line under it, the long form, and the sum of a session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


class Timed(Protocol):
    """Of `generate.results.Generation`, what a report needs."""

    @property
    def finish_reason(self) -> Any: ...

    @property
    def timings(self) -> Any: ...

    @property
    def speculation(self) -> Any: ...


def footer(answer: Timed, width: int | None = None) -> str:
    """One line: tokens, tokens/s, prompt tokens/s, time to first token, drafting, peak memory. Where that is wider than
    `width` columns it is broken between figures."""
    timings, speculation = answer.timings, answer.speculation
    parts = [
        f"{timings.gen_tokens} tokens, {speed(timings.gen_tps)}",
        f"prompt {timings.prompt_tokens} at {speed(timings.prompt_tps)}",
        f"first after {seconds(timings.ttft_s)}",
    ]
    if speculation.drafted:
        parts.append(drafting(speculation))
    parts.append(f"peak {gigabytes(timings.peak_rss_bytes)}")
    lines = parts[:1]
    for part in parts[1:]:
        longer = f"{lines[-1]} · {part}"
        lines[-1:] = [longer] if width is None or len(longer) <= width else [lines[-1], part]
    return "\n".join(lines)


def drafting(speculation: Any) -> str:
    """How many drafts were accepted, in all and by position, and what that was worth."""
    rates = ", ".join(f"{rate:.0%}" for rate in speculation.per_position)
    gain = f", {speculation.speedup:.2f} x" if speculation.speedup else ""
    return f"{speculation.accepted} of {speculation.drafted} drafts accepted ({rates}){gain}"


def long_form(answer: Timed) -> str:
    """A line for each figure; load, compile and generation apart."""
    timings, speculation = answer.timings, answer.speculation
    rows = [
        ("loading", seconds(timings.load_s)),
        ("compiling", seconds(timings.compile_s)),
        ("time to first token", seconds(timings.ttft_s)),
        ("prompt", f"{timings.prompt_tokens} new tokens, {speed(timings.prompt_tps)}"),
        ("answer", f"{timings.gen_tokens} tokens, {speed(timings.gen_tps)}"),
        ("a token", seconds(1 / timings.gen_tps) if timings.gen_tps else "-"),
        ("ended by", str(answer.finish_reason)),
    ]
    if speculation.drafted:
        rows.append(("drafts", f"{speculation.accepted} of {speculation.drafted} accepted"))
        positions = ", ".join(f"{rate:.0%}" for rate in speculation.per_position)
        rows.append(("accepted by position", positions))
    if speculation.speedup:
        rows.append(("against no drafts", f"{speculation.speedup:.2f} x"))
    rows.append(("peak memory", gigabytes(timings.peak_rss_bytes)))
    return table(rows)


@dataclass
class Totals:
    """A session so far."""

    answers: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    seconds: float = 0.0
    drafted: int = 0
    accepted: int = 0
    context_used: int = 0

    def add(self, answer: Any) -> None:
        """Count a finished (or interrupted) answer."""
        timings = answer.timings
        self.answers += 1
        self.tokens += timings.gen_tokens
        self.prompt_tokens += timings.prompt_tokens
        self.seconds += timings.ttft_s + (timings.gen_tokens / timings.gen_tps if timings.gen_tps else 0.0)
        self.drafted += answer.speculation.drafted
        self.accepted += answer.speculation.accepted
        self.context_used = len(answer.prompt_token_ids) + len(answer.token_ids)

    def describe(self, context: int | None) -> str:
        rows = [
            ("answers", str(self.answers)),
            ("tokens answered", str(self.tokens)),
            ("tokens read", str(self.prompt_tokens)),
            ("time spent", seconds(self.seconds)),
            ("context in use", f"{self.context_used}" + (f" of {context}" if context else "")),
        ]
        if self.drafted:
            rows.append(("drafts accepted", f"{self.accepted / self.drafted:.0%}"))
        return table(rows)


def table(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def seconds(value: float) -> str:
    if value < 0.1:
        return f"{value * 1000:.3g} ms"
    return f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def speed(value: float) -> str:
    """Tokens per second; "-" where there was nothing to measure."""
    if value <= 0:
        return "- tok/s"
    return f"{value:.1f} tok/s" if value < 100 else f"{value:,.0f} tok/s"


def gigabytes(value: float) -> str:
    return f"{value / 1e9:.2f} GB" if value >= 1e8 else f"{value / 1e6:.0f} MB"

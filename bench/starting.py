"""A process that starts as `dsv3rt chat` does and talks until everything runs compiled; one JSON object on stdout.

    python bench/starting.py CHECKPOINT STARTED

STARTED is the time at which the process was started, by `time.monotonic`. Times are seconds since then.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

PAUSE_S = 0.5
"""Between an answer and the next question: a quick reader."""


COMPILED = 0.9
"""Share of an answer's calls that ran compiled: then its speed is that of compiled graphs."""


def main() -> None:
    checkpoint, started = sys.argv[1], float(sys.argv[2])

    import torch  # noqa: F401

    imported = time.monotonic() - started
    from dsv3rt.runtime import load

    runtime = load(checkpoint)
    report: dict[str, Any] = {"torch imported": imported, "loaded": time.monotonic() - started}
    counters = runtime.engine.counters
    speeds: list[float] = []
    while "compiled" not in report:
        before = counters.compiled, counters.uncompiled
        asked = time.monotonic() - started
        stream = runtime.stream([7, 5, 3] * 8, max_tokens=60, ignore_eos=True)
        next(stream)
        report.setdefault("first token", time.monotonic() - started)
        speeds.append(stream.generation.timings.gen_tps)
        compiled, uncompiled = counters.compiled - before[0], counters.uncompiled - before[1]
        if compiled >= COMPILED * (compiled + uncompiled):
            report["compiled"] = asked
        time.sleep(PAUSE_S)
    rounded = {name: round(seconds, 2) for name, seconds in report.items()}
    runtime.engine.wait()  # what is still being made would slow down the start after this one
    print(json.dumps({**rounded, "tokens/s by answer": [round(speed, 1) for speed in speeds]}))


if __name__ == "__main__":
    main()

"""A process that starts as `dsv3rt chat` does and talks until everything runs compiled; one JSON object on stdout.

    python bench/starting.py CHECKPOINT STARTED

STARTED is the time at which the process was started, by `time.monotonic`. Times are seconds since then.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

PAUSE_S = 0.5
"""Between an answer and the next question: a quick reader."""


def main() -> None:
    checkpoint, started = sys.argv[1], float(sys.argv[2])

    import torch  # noqa: F401

    imported = time.monotonic() - started
    from dsv3rt.runtime import load

    runtime = load(checkpoint)
    report: dict[str, Any] = {"torch imported after s": imported, "loaded after s": time.monotonic() - started}
    text = hasattr(runtime, "tokenizer") and runtime.has_tokenizer and runtime.folder.name == "dsv3rt-mini"
    speeds: list[float] = []
    while True:
        uncompiled = runtime.engine.counters.uncompiled
        asked = time.monotonic()
        if text:
            stream = runtime.chat([{"role": "user", "content": "Tell me a story."}], max_tokens=60, stream=True)
        else:
            stream = runtime.stream([7, 5, 3] * 8, max_tokens=40, ignore_eos=True)
        next(stream)
        report.setdefault("first token after s", time.monotonic() - started)
        speed = stream.generation.timings.gen_tps
        speeds.append(round(speed, 1))
        if runtime.engine.counters.uncompiled == uncompiled:
            report["compiled after s"] = asked - started
            break
        time.sleep(PAUSE_S)
    report["tokens/s by answer"] = speeds
    if os.environ.get("DSV3RT_BENCH_ALL") == "1":
        runtime.engine.wait()
        report["all graphs after s"] = time.monotonic() - started
    print(json.dumps({name: round(value, 2) if isinstance(value, float) else value for name, value in report.items()}))


main()

"""The side process that compiles: `python -m dsv3rt.compile.worker`, started and fed by service.py.

Jobs come in on stdin, each a length and a pickle; for each one line of JSON goes out on stdout. Every job runs in a
process forked off for it, so that importing the compiler is paid once, jobs may overlap, and a compiler that crashes
takes only its job along. When stdin ends (whoever asked is gone), the jobs at hand are finished, so that a program that
ends early still leaves its graph for the next start; then the process ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from dsv3rt import cache_folder
from dsv3rt.compile.jobs import READY, SCRATCH, Answer, CommonJob, Job, receive

NICENESS = 10


def _say(out: int, line: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more; the entry is in the store all the same
        os.write(out, line)


def _run_forked(job: Job | CommonJob, out: int, scratch: Path) -> int:
    """Run `job` in a child; its process id."""
    started = time.perf_counter()
    pid = os.fork()
    if pid:
        return pid
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    error, refused = None, False
    try:
        # jobs must not share generated files: those of two modules may have the same name
        own = tempfile.tempdir = tempfile.mkdtemp(dir=scratch)
        os.environ.update(TMPDIR=own, TORCHINDUCTOR_CACHE_DIR=f"{own}/inductor")
        job.run(Path(own))
    except BaseException as caught:
        error = " ".join(f"{type(caught).__name__}: {caught}".split())
        if len(error) > 2000:  # a compiler's command, and at its end what it says
            error = f"{error[:1000]} ... {error[-1000:]}"
        refused = not isinstance(caught, OSError)
    _say(out, Answer(job.key, round(time.perf_counter() - started, 3), error, refused).line())
    os._exit(0)


class _Children:
    """The processes at work. One that ends without having answered is answered for."""

    def __init__(self, out: int, scratch: Path) -> None:
        self.out = out
        self.scratch = scratch
        self.running: dict[int, str] = {}
        signal.signal(signal.SIGCHLD, lambda number, frame: self.reap(os.WNOHANG))

    def start(self, job: Job | CommonJob) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # it must be listed before it can end
        pid = _run_forked(job, self.out, self.scratch)
        self.running[pid] = job.key
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})

    def reap(self, flags: int) -> None:
        while self.running:
            pid, status = os.waitpid(-1, flags)
            if not pid:
                return
            key = self.running.pop(pid, None)
            if key is not None and status:
                reason = f"the compiler ended with status {os.waitstatus_to_exitcode(status)}"
                _say(self.out, Answer(key, 0.0, reason).line())

    def wait(self) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.reap(0)


def main() -> None:
    """Read jobs until stdin ends."""
    os.nice(NICENESS)
    out = os.dup(1)
    os.dup2(2, 1)  # what compilers print must not mix with the answers
    cache_folder.sweep(Path(tempfile.gettempdir()), SCRATCH)
    with (temporary := cache_folder.scratch(SCRATCH)) as scratch:

        def end(number: int, frame: FrameType | None) -> NoReturn:
            temporary.cleanup()
            os._exit(0)  # no exception: one that is raised in a hook of fork's is lost

        signal.signal(signal.SIGTERM, end)
        os.environ.update(
            OMP_NUM_THREADS="1",
            TORCHINDUCTOR_COMPILE_THREADS="1",
            # what instructions there are, the processor says; trying each with a program of its own takes 8 s
            TORCHINDUCTOR_VEC_ISA_OK="1",
        )
        import torch
        import torch._inductor.compile_fx
        import torch.export

        torch.set_num_threads(1)
        _say(out, READY)
        children = _Children(out, Path(scratch))
        while (job := receive(sys.stdin.buffer)) is not None:
            children.start(job)
        children.wait()


if __name__ == "__main__":
    main()

"""Jobs that cost nothing, for the pool's tests: importable by name in a worker process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from t5edge.options import ExportOptions
from t5edge.tools.sweep.jobs import Job, Outcome

GIB = 2**30


def job(name: str, folder: Path, memory: int = GIB, revision: str | None = None) -> Job:
    """``revision`` carries what the fakes are to do."""
    return Job(name, str(folder), ExportOptions(variant=name, revision=revision), memory)


def run(job: Job) -> Outcome:
    """Leave ``<name>.begin`` and ``<name>.end`` with times; die, raise or wait on demand."""
    folder, what = Path(job.out), job.options.revision or ""
    (folder / f"{job.name}.begin").write_text(f"{time.time()} {os.getpid()}")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "leave":
        os._exit(7)
    partial = folder / f"{job.name}.partial"
    partial.touch()
    try:
        _work(float(what) if what else 0.01)
    finally:
        partial.unlink()
    (folder / f"{job.name}.end").write_text(str(time.time()))
    return Outcome(job.name, job.options.variant, job.options.precision, "exported")


def _work(seconds: float) -> None:
    """Come back to the interpreter now and then, as an export does: Ray interrupts nowhere else."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.02)


def hear_interrupts() -> None:
    """For ``preexec_fn``: a shell's background jobs, and so their children, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)

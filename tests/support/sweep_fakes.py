"""An export that costs nothing: run in place of ``cli.py``, it takes the same command line and prints the same object.

``--revision`` says what it does: ``die``, ``crash``, ``leave``, ``refuse``, ``orphan``, ``stay``, or wait
so many seconds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t5edge.tools.sweep.jobs import Job

GIB = 2**30
PROGRAM = (str(Path(__file__).resolve()),)


def job(name: str, folder: Path, memory: int = GIB, revision: str | None = None) -> Job:
    from t5edge.options import ExportOptions
    from t5edge.tools.sweep.jobs import Job

    return Job(name, str(folder), ExportOptions(variant=name, revision=revision), memory)


def hear_interrupts() -> None:
    """For ``preexec_fn``: a shell's background jobs, and so their children, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def export(out: Path, variant: str, revision: str = "0.01") -> None:
    """Leave ``<variant>.begin`` with the time, process and threads, and ``<variant>.end`` with the time."""
    (out / f"{variant}.begin").write_text(f"{time.time()} {os.getpid()} {os.environ['OMP_NUM_THREADS']}")
    if revision == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if revision == "crash":
        os.abort()
    if revision == "orphan":
        os.kill(os.getppid(), signal.SIGKILL)
    if revision == "stay":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        time.sleep(60)
    if revision in ("leave", "refuse"):
        print(f"progress\nt5edge export: {variant} cannot be had", file=sys.stderr)
        sys.exit({"leave": 7, "refuse": 2}[revision])
    partial = out / f"{variant}.partial"
    partial.touch()
    try:
        time.sleep(float(revision))
    finally:
        partial.unlink()
    (out / f"{variant}.end").write_text(str(time.time()))
    found = {"name": variant, "variant": variant, "precision": "fp32", "status": "exported"}
    print("a library's chatter", json.dumps({"exports": [found]}), sep="\n")


if __name__ == "__main__":
    from t5edge.tools.sweep.parent import end_with_parent

    end_with_parent()
    given = dict(flag.removeprefix("--").split("=", 1) for flag in sys.argv[1:] if "=" in flag)
    export(Path(given["out"]), given["variant"], given.get("revision", "0.01"))

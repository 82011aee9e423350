"""Everything that only a GPU can answer, in one command: `make gpu`.

    python -m benchmarks.gpu [--out build/gpu] [--minutes 8.5] [--fresh] [--rehearse]

Finds which targets this machine has, exports t5-demo and the t5-base shape (random weights) in every precision, builds
their engines in every form, compares logits with float32 PyTorch on the GPU, runs the ladder, and times encoder and
step against PyTorch, eager and compiled, and against the GPU's read bandwidth. Needs no network. What was found is kept
step by step in OUT, so a run that was stopped, or whose time was up, goes on when it is started again.

Ends with OUT/gpu.json, OUT/gpu.md (for docs/) and a table; exit 0 when nothing failed, 1 otherwise. Without a GPU every
step is `not run`. ``--rehearse`` runs the steps on the CPU instead, in OUT/rehearsal, with ONNX Runtime's CPU provider:
it tries this program, and its figures say nothing about a GPU.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console

from benchmarks.gpu.plan import DISK_GB, TARGETS, Step, rehearsed, steps
from benchmarks.gpu.results import Result, Results
from benchmarks.gpu.table import as_markdown, as_table, write_json
from t5edge.engines.doctor import targets_report
from t5edge.runtime.gpu import GpuReport, find_gpus

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
ROOT = Path(__file__).parents[2]
POLL = 0.2


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run what is open, write the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))
    parser.add_argument("--minutes", type=float, default=8.5, help="no step is begun after this long (default: 8.5)")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run found in --out")
    parser.add_argument("--rehearse", action="store_true", help="on this CPU, to try the program")
    options = parser.parse_args(arguments)
    out = options.out / "rehearsal" if options.rehearse else options.out
    if options.fresh:
        shutil.rmtree(out / "steps", ignore_errors=True)
    results, console = Results(out), Console()
    todo = rehearsed() if options.rehearse else steps()
    found = GpuReport(()) if options.rehearse else find_gpus()
    results.forget_not_run(todo)  # what was missing then may be there now
    for step, reason in impossible(todo, found, options.rehearse):
        results.write(step, Result("not run", reason))
    device = "cpu" if options.rehearse else "cuda"
    capability = found.gpus[0].compute_capability if found.gpus else ""
    run_all(todo, results, console, [str(out), device, capability], 60 * options.minutes)
    for step in results.open_steps(todo):  # kept open on disk: the next run goes on here
        console.print(f"{step.name}: not run: the time was up; start it again to go on", style="yellow")
    rows = [(step, results.read(step) or Result("not run", "the time was up")) for step in todo]
    write_json(out / "gpu.json", rows)
    (out / "gpu.md").write_text(as_markdown(rows), encoding="utf-8")
    console.print(as_table(rows))
    return 1 if any(result.state == "failed" for _, result in rows) else 0


def impossible(todo: Sequence[Step], found: GpuReport, rehearse: bool) -> Iterator[tuple[Step, str]]:
    """Steps that this machine cannot do, each with the reason."""
    if rehearse:
        return
    rows = {row["target"]: row for row in targets_report()}
    for step in todo:
        if not found.gpus:
            yield step, found.reason
        elif step.target in TARGETS and not rows[step.target]["can_run"]:
            yield step, rows[step.target]["reason"]
        elif shutil.disk_usage(".").free < DISK_GB * 1e9 and step.kind == "export":
            yield step, f"fewer than {DISK_GB} GB are free on the disk"


def run_all(todo: Sequence[Step], results: Results, console: Console, place: list[str], seconds: float) -> None:
    """Run what is open, group by group, each in a process that is replaced when it breaks or takes too long."""
    end = time.monotonic() + seconds
    for _, group in groupby(todo, lambda step: step.group):
        members = list(group)
        while (left := results.open_steps(members)) and time.monotonic() < end:
            before = len(left)
            run_group(left, results, console, place, end)
            if len(results.open_steps(members)) == before:  # it broke before its first step
                results.write(left[0], Result("failed", "the process ended before the step began; see log.txt"))


def run_group(left: Sequence[Step], results: Results, console: Console, place: list[str], end: float) -> None:
    """One process for steps of one group; a step that outlasts its limit ends it."""
    log = Path(place[0]) / "log.txt"
    command = [sys.executable, "-m", "benchmarks.gpu.worker", *place, *(step.name for step in left)]
    with log.open("ab") as file:
        worker = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, env={**os.environ, **OFFLINE})
    reason = watch(worker, left, results, console, end)
    for step in left:
        result = results.read(step)
        if result is not None and result.state == "running" and reason != "":
            results.write(step, Result("failed", reason))
            console.print(f"{step.name}: {reason}", style="red")


def watch(worker: subprocess.Popen[bytes], left: Sequence[Step], results: Results, console: Console, end: float) -> str:
    """Wait for it, printing steps as they end; returns why it was stopped, "" where the time was up."""
    said: set[Step] = set()
    current, begin = left[0], time.monotonic()
    while True:
        code = worker.poll()
        for step in left:
            result = results.read(step)
            if result is not None and result.state != "running" and step not in said:
                said.add(step)
                console.print(f"{step.name}: {result.state} {result.reason}"[:200], highlight=False)
                begin = time.monotonic()
        remaining = [step for step in left if step not in said]
        if code is not None:
            return f"its process ended with {code}" if remaining else ""
        if remaining and remaining[0] is not current:
            current = remaining[0]
        if time.monotonic() - begin > current.seconds:
            worker.kill()
            worker.wait()
            return f"it took more than {current.seconds:.0f} seconds"
        if time.monotonic() > end + current.seconds:
            worker.kill()
            worker.wait()
            return ""
        time.sleep(POLL)


if __name__ == "__main__":
    sys.exit(main())

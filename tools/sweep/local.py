"""Exports as processes on this machine, as many at once as memory and cores allow.

A process that dies (killed by the system for its memory, say) costs its export and nothing else.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from t5edge.tools.sweep.command_line import export_arguments
from t5edge.tools.sweep.jobs import Job, Outcome, outcome_of
from t5edge.tools.sweep.parent import GRACE_SECONDS, PARENT_PIPE

CLI = Path(__file__).parents[2] / "cli.py"
POLL_SECONDS = 0.5
"""How often waiting comes back to the interpreter: Windows and Ray interrupt nowhere else."""


def run_here(
    jobs: Sequence[Job], workers: int, budget: int, threads: int, program: Sequence[str] = ()
) -> Iterator[Outcome]:
    """Outcomes as they come. Closing the iterator, or an exception in it, ends what is under way.

    Args:
        jobs: in the order to start them; one that does not fit now is overtaken by a smaller one.
        workers: processes at most.
        budget: bytes that all may take together; a job larger than that runs alone.
        threads: of PyTorch in each process.
        program: what Python runs in place of ``cli.py``.
    """
    waiting, running = list(jobs), dict[Future[Outcome], _Process]()
    with ThreadPoolExecutor(workers) as pool:
        try:
            while waiting or running:
                while len(running) < workers and (job := _next_fitting(waiting, running.values(), budget)) is not None:
                    waiting.remove(job)
                    process = _Process(job, threads, program)
                    running[pool.submit(process.outcome)] = process
                for future in wait(running, POLL_SECONDS, FIRST_COMPLETED).done:
                    del running[future]
                    yield future.result()
        finally:
            _end(running.values())


def _next_fitting(waiting: Sequence[Job], running: Collection[_Process], budget: int) -> Job | None:
    left = budget - sum(process.job.memory for process in running)
    return next((job for job in waiting if not running or job.memory <= left), None)


class _Process:
    """One export under way. It hears of the sweep's end through a pipe, not from the terminal's Ctrl-C."""

    def __init__(self, job: Job, threads: int, program: Sequence[str]) -> None:
        settings = {"OMP_NUM_THREADS": str(threads), "PYTHONIOENCODING": "utf-8", PARENT_PIPE: "1"}
        self.job = job
        self.process = subprocess.Popen(
            [sys.executable, *(program or [str(CLI)]), *export_arguments(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, **settings},
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        assert self.process.stdin is not None
        self.pipe, self.process.stdin = self.process.stdin, None  # ``communicate`` would close it

    def outcome(self) -> Outcome:
        """Wait for the end; the outcome that the export printed, or what is known of its end."""
        output, errors = self.process.communicate()
        self.pipe.close()
        try:
            found = json.loads(output.strip().rpartition("\n")[2])["exports"][0]
            return Outcome(**{**found, "name": self.job.name})
        except (ValueError, LookupError, TypeError):
            return outcome_of(self.job, status="failed", error=_why(self.process.returncode, errors))


def _end(processes: Collection[_Process]) -> None:
    """Let all clean up, and kill those that cannot."""
    for running in processes:
        running.pipe.close()
    for running in processes:
        try:
            running.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            running.process.kill()


def _why(code: int, errors: str) -> str:
    """One line on a process that printed no outcome. ``code``: negative for a signal."""
    name = next((entry.name for entry in signal.Signals if entry == -code), f"signal {-code}")
    if name == "SIGKILL":
        return "killed by SIGKILL, most likely for its memory; try --jobs 1, or a machine with more memory."
    if code < 0:
        return f"ended by {name}; run this export on its own to see why."
    last = errors.strip().rpartition("\n")[2]
    if code == 2:
        return last.removeprefix("t5edge export: ")
    return f"ended with exit code {code} ({last or 'no message'}); run this export on its own to see why."

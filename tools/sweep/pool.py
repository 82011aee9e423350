"""Worker processes on this machine: each job in a process of a small pool, as many at once as memory and cores allow.

A worker that dies (killed by the system for its memory, say) costs its job and nothing else. Workers end with the
process that started them, however that ends; interrupted exports take their temporary folders with them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Any

from t5edge.tools.sweep.jobs import Job, Outcome, lost

RunJob = Callable[[Job], Outcome]
GRACE_SECONDS = 30.0
"""How long a worker may take to clean up before it is killed."""


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    job: Job | None = None


def run_in_processes(
    jobs: Sequence[Job],
    run: RunJob,
    workers: int,
    budget: int,
    threads: int,
    on_start: Callable[[Job], None] | None = None,
) -> Iterator[Outcome]:
    """Outcomes as they come.

    At most ``workers`` jobs run at once, and no more than fit ``budget`` bytes together; a job that fits on no machine
    of that size runs alone. Closing the iterator, or an exception in its consumer, stops all workers.

    Args:
        jobs: in the order to start them; one that does not fit now is overtaken by a smaller one.
        run: called in the worker; must be importable by name.
        workers: processes at most.
        budget: bytes.
        threads: of PyTorch in each worker.
        on_start: told of every job when it starts.
    """
    pool = _Pool(run, threads)
    waiting = list(jobs)
    try:
        while waiting or pool.busy:
            while len(pool.busy) < workers and (job := _next_fitting(waiting, pool.busy, budget)) is not None:
                waiting.remove(job)
                pool.start(job)
                if on_start is not None:
                    on_start(job)
            yield from pool.finished()
    finally:
        pool.stop()


def _next_fitting(waiting: Sequence[Job], busy: Sequence[_Worker], budget: int) -> Job | None:
    used = sum(worker.job.memory for worker in busy if worker.job is not None)
    if not busy:
        return waiting[0] if waiting else None
    return next((job for job in waiting if used + job.memory <= budget), None)


class _Pool:
    """Idle and busy workers. Processes start when they are needed."""

    def __init__(self, run: RunJob, threads: int) -> None:
        self._run, self._threads = run, threads
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []

    @property
    def busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.job is not None]

    def start(self, job: Job) -> None:
        worker = next((worker for worker in self._workers if worker.job is None), None) or self._spawn()
        worker.job = job
        with contextlib.suppress(BrokenPipeError):  # it died while idle: ``finished`` will say so
            worker.pipe.send(job)

    def _spawn(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._run, self._threads), daemon=True)
        process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours))
        return self._workers[-1]

    def finished(self) -> Iterator[Outcome]:
        """Wait until a job has ended; outcomes of all that have."""
        busy = self.busy
        ready = set(wait([worker.pipe for worker in busy]))
        for worker in busy:
            if worker.pipe not in ready:
                continue
            assert worker.job is not None
            try:
                outcome: Outcome = worker.pipe.recv()
            except (EOFError, OSError):
                outcome = lost(worker.job, self._bury(worker))
            worker.job = None
            yield outcome

    def _bury(self, worker: _Worker) -> str:
        """Remove a dead worker; returns what is known of its end."""
        worker.process.join()
        self._workers.remove(worker)
        code = worker.process.exitcode or 0
        if code == -signal.SIGKILL:
            return "the worker was killed, most likely for its memory; try --jobs 1, or a machine with more memory."
        ended = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return f"the worker ended {ended}; run this export on its own to see why."

    def stop(self) -> None:
        """End all workers: idle ones at once, busy ones after cleaning up."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(GRACE_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()
        self._workers.clear()


def _serve(pipe: Connection, run: RunJob, threads: int) -> None:
    """The worker: jobs in, outcomes out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.dup2(2, 1)  # standard output is the parent's
    _limit_threads(threads)
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(run(pipe.recv()))


def _leave(number: int, frame: FrameType | None) -> Any:
    """Unwind, so that temporary folders are removed."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)


def _end_with_parent() -> None:
    """A parent that was killed cannot stop its workers, so they progress it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _limit_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported, which is later

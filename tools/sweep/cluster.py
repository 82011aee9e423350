"""The same jobs on a Ray cluster: one task for each, placed by its memory. Every node needs this package installed.

Bundles go to a folder that all nodes share, or to a URL.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from t5edge.errors import UserError
from t5edge.tools.sweep.jobs import Job, Outcome, lost
from t5edge.tools.sweep.pool import GRACE_SECONDS, RunJob

CONNECT_SECONDS = 10.0
RETRIES = 1
"""How often Ray starts a task again whose node was lost."""


def run_on_ray(
    jobs: Sequence[Job], run: RunJob, address: str, on_start: Callable[[Job], None] | None = None
) -> Iterator[Outcome]:
    """Outcomes as they come. Closing the iterator, or an exception in its consumer, cancels what is under way.

    Args:
        jobs: all are handed to Ray, which starts what fits.
        run: called on the cluster; must be importable by name there.
        address: of the cluster, as ``ray.init`` takes it (``auto``, ``host:6379``, ``ray://host:10001``).
        on_start: told of every job when it is handed over.

    Raises:
        UserError: ray is missing, or there is no cluster at the address.
    """
    ray = _connect(address)
    largest = max(int(node["Resources"].get("memory", 0)) for node in ray.nodes() if node["Alive"])

    def run_there(job: Job) -> Outcome:
        return replace(run(job), node=ray.get_runtime_context().get_node_id())

    task = ray.remote(num_cpus=1, max_retries=RETRIES)(run_there)
    under_way: dict[Any, Job] = {}
    try:
        for job in jobs:
            under_way[task.options(memory=min(job.memory, largest), name=job.name).remote(job)] = job
            if on_start is not None:
                on_start(job)
        while under_way:
            done, _ = ray.wait(list(under_way), num_returns=1)
            job = under_way.pop(done[0])
            yield _outcome(ray, done[0], job)
    finally:
        _cancel(ray, list(under_way))
        ray.shutdown()


def _cancel(ray: Any, references: list[Any]) -> None:
    """Raise in the tasks, and give them time to remove their temporary folders."""
    for reference in references:
        ray.cancel(reference, force=False)
    if references:
        ray.wait(references, num_returns=len(references), timeout=GRACE_SECONDS)


def _connect(address: str) -> Any:
    try:
        import ray
    except ImportError as error:
        raise UserError("--ray needs Ray: pip install 't5edge[ray]'") from error
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"there is no Ray cluster at '{address}' ({error}); start one with 'ray start --head'."
        ) from error
    return ray


def _knock(address: str) -> None:
    """Find out within seconds whether anything listens there; Ray itself would wait for minutes.

    Raises:
        OSError: nothing does.
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def _outcome(ray: Any, reference: Any, job: Job) -> Outcome:
    try:
        found: Outcome = ray.get(reference)
    except ray.exceptions.RayError as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return lost(
            job, f"the worker was lost ({type(error).__name__}: {first}); run this export on its own to see why."
        )
    return found

"""The same processes on a Ray cluster: a task for each, placed by its memory. Every node needs this package installed.

Bundles go to a folder that all nodes share, or to a URL.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from t5edge.errors import UserError
from t5edge.tools.sweep.jobs import Job, Outcome, outcome_of
from t5edge.tools.sweep.local import run_here
from t5edge.tools.sweep.parent import GRACE_SECONDS

CONNECT_SECONDS = 10.0
RETRIES = 1
"""How often Ray starts a task again whose node was lost."""


def run_on_ray(jobs: Sequence[Job], address: str, program: Sequence[str] = ()) -> Iterator[Outcome]:
    """Outcomes as they come. Closing the iterator, or an exception in it, cancels what is under way.

    Args:
        jobs: all are handed to Ray, which starts what fits.
        address: of the cluster, as ``ray.init`` takes it (``auto``, ``host:6379``, ``ray://host:10001``).
        program: as ``run_here`` takes it.

    Raises:
        UserError: ray is missing, or there is no cluster at the address.
    """
    ray = _connect(address)
    largest = max(int(node["Resources"].get("memory", 0)) for node in ray.nodes() if node["Alive"])
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(_run_there)
    under_way: dict[Any, Job] = {}
    try:
        for job in jobs:
            placed = task.options(memory=min(job.memory, largest), name=job.name)
            under_way[placed.remote(job, program)] = job
        while under_way:
            (done,), _ = ray.wait(list(under_way), num_returns=1)
            yield _outcome(ray, done, under_way.pop(done))
    finally:
        for reference in under_way:
            ray.cancel(reference, force=False)
        if under_way:
            ray.wait(list(under_way), num_returns=len(under_way), timeout=GRACE_SECONDS)
        ray.shutdown()


def _run_there(job: Job, program: Sequence[str]) -> Outcome:
    """On a node of the cluster."""
    import ray

    [found] = run_here([job], 1, job.memory, 1, program)
    return replace(found, node=ray.get_runtime_context().get_node_id())


def _connect(address: str) -> Any:
    try:
        import ray
    except ImportError as error:
        raise UserError("--ray needs Ray: pip install 't5edge[ray]'") from error
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():  # Ray itself would wait for minutes where nothing listens
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"there is no Ray cluster at '{address}' ({error}); start one with 'ray start --head'."
        ) from error
    return ray


def _outcome(ray: Any, reference: Any, job: Job) -> Outcome:
    try:
        found: Outcome = ray.get(reference)
    except ray.exceptions.RayError as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        why = f"the worker was lost ({type(error).__name__}: {first}); run this export on its own to see why."
        return outcome_of(job, status="failed", error=why)
    return found

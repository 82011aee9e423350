"""What running has proved about a bundle's engines: the ``run`` field of their entry in the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from t5edge.bundle.engine_record import EngineEntry, EngineRecord, EngineRun
from t5edge.bundle.files import MANIFEST
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.parity_report import FAIL, PASS, ParityReport
from t5edge.errors import UserError
from t5edge.progress import Progress
from t5edge.runtime.backend import find_backend
from t5edge.runtime.gpu import Gpu, find_gpus


def proof(gpu: Gpu, report: ParityReport) -> EngineRun:
    """What ``report`` proved on ``gpu``."""
    verdict = FAIL if report.failed else PASS
    return EngineRun(gpu.name, verdict, tuple(report.without_details().results))


def with_run(manifest: Manifest, target: str, capability: str, run: str | EngineRun) -> Manifest:
    """``manifest`` with another ``run`` field of these engines.

    Raises:
        UserError: the manifest lists no such engines.
    """
    entry = manifest.engines.get(target, {}).get(capability)
    if entry is None:
        raise UserError(f"{MANIFEST} lists no {target} engines for compute capability {capability}")
    return manifest.with_engines(target, capability, replace(entry, run=run))


def kept_run(before: EngineEntry | None, graphs: Mapping[str, EngineRecord], run: str | EngineRun) -> str | EngineRun:
    """``run``, or what was proved before about the very same engines where ``run`` proves no more.

    ``before``: the old entry of one compute capability; ``graphs``: the new records; ``run``: what building found.
    """
    if before is None or isinstance(before.run, str):
        return run
    same = all(before.graphs.get(graph) == record for graph, record in graphs.items())
    agrees = isinstance(run, str) or run.verdict == before.run.verdict == PASS
    return before.run if same and agrees else run


def why_not_run(target: str) -> str | None:
    """Why the engines of ``target`` cannot run on this machine; None where they can, and where it has no engines."""
    return find_gpus().reason or None if find_backend(target).is_engine else None


def record_run(folder: Path, target: str, report: ParityReport, progress: Progress) -> None:
    """Write what ``report`` proved on this machine's GPU into the manifest, in one rename.

    A bundle that cannot be written stays as it is, and ``progress`` is told so.
    """
    gpu = find_gpus().gpus[0]
    try:
        with_run(Manifest.read(folder), target, gpu.compute_capability, proof(gpu, report)).write(folder)
    except (UserError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        progress.message(f"the result is not recorded in '{folder / MANIFEST}': {reason}")

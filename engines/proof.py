"""What running has proved about a bundle's engines: the ``run`` field of their entry in the manifest.

    "not run: reason"
    {"gpu": name, "verdict": "pass" | "fail", "rungs": [{"name", "measure", "value", "limit", "verdict"}, ...]}

Without a date, so that the same proof is the same manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t5edge.bundle.manifest import MANIFEST, read_manifest, write_json
from t5edge.bundle.parity_report import FAIL, PASS, ParityReport
from t5edge.errors import UserError
from t5edge.progress import Progress
from t5edge.runtime.gpu import Gpu, find_gpus
from t5edge.runtime.tensorrt.flavor import FLAVORS

Run = str | dict[str, Any]


def proof(gpu: Gpu, report: ParityReport) -> dict[str, Any]:
    """What ``report`` proved on ``gpu``."""
    verdict = PASS if report.passed else FAIL
    return {"gpu": gpu.name, "verdict": verdict, "rungs": report.short()["rungs"]}


def with_run(manifest: Mapping[str, Any], target: str, capability: str, run: Run) -> dict[str, Any]:
    """A copy of ``manifest`` that differs in the ``run`` field of these engines alone.

    Raises:
        UserError: the manifest lists no such engines.
    """
    entries = manifest["engines"].get(target, {})
    if capability not in entries:
        raise UserError(f"{MANIFEST} lists no {target} engines for compute capability {capability}")
    entry = {**entries[capability], "run": run}
    return {**manifest, "engines": {**manifest["engines"], target: {**entries, capability: entry}}}


def kept_run(before: Mapping[str, Any] | None, entry: Mapping[str, Any], run: Run) -> Run:
    """``run``, or what was proved before about the very same engines where ``run`` proves no more.

    ``before`` and ``entry`` are the old and the new entry of one compute capability; ``run`` is what building found.
    """
    if before is None or isinstance(before["run"], str):
        return run
    same = all(before.get(graph) == record for graph, record in entry.items() if graph != "run")
    agrees = isinstance(run, str) or run["verdict"] == before["run"]["verdict"] == PASS
    return before["run"] if same and agrees else run


def why_not_run(target: str) -> str | None:
    """Why the engines of ``target`` cannot run on this machine; None where they can, and where it has no engines."""
    return find_gpus().reason or None if target in FLAVORS else None


def record_run(folder: Path, target: str, report: ParityReport, progress: Progress) -> None:
    """Write what ``report`` proved on this machine's GPU into the manifest, in one rename.

    A bundle that cannot be written stays as it is, and ``progress`` is told so.
    """
    gpu = find_gpus().gpus[0]
    try:
        manifest = with_run(read_manifest(folder), target, gpu.compute_capability, proof(gpu, report))
        write_json(folder / MANIFEST, manifest)
    except (UserError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        progress.message(f"the result is not recorded in '{folder / MANIFEST}': {reason}")

"""One export of a sweep: what is asked for, whether it is there already, and what came of it."""

from __future__ import annotations

import time
import traceback
from dataclasses import asdict, dataclass
from typing import Any, Literal

from t5edge.bundle.manifest import Manifest
from t5edge.errors import GateError, UserError
from t5edge.options import ExportOptions

Status = Literal["exported", "kept", "failed"]


@dataclass(frozen=True)
class Job:
    """One bundle to be made.

    ``out``: the folder or URL below which it goes, as ``name``. ``memory``: estimated peak, bytes.
    """

    name: str
    out: str
    options: ExportOptions
    memory: int


@dataclass(frozen=True)
class Outcome:
    """What came of a job. ``error`` is one line; ``trace`` a defect's traceback; ``node`` the cluster's name of it."""

    name: str
    variant: str
    precision: str
    status: Status
    seconds: float = 0.0
    bundle: str | None = None
    bytes: int | None = None
    passed: bool | None = None
    weights_sha256: str | None = None
    error: str | None = None
    trace: str | None = None
    node: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key not in ("trace", "node") or value is not None}


def run_job(job: Job) -> Outcome:
    """Do one job; never raises but for an interruption. A finished bundle of the same inputs is kept."""
    begin = time.monotonic()
    try:
        found = _run(job)
    except (UserError, GateError) as error:
        return _failed(job, begin, " ".join(str(error).split()))
    except Exception as error:  # noqa: BLE001 - a defect in one export must not end the others
        return _failed(job, begin, f"{type(error).__name__}: {error}", traceback.format_exc())
    seconds = round(time.monotonic() - begin, 2)
    return Outcome(job.name, job.options.variant, job.options.precision, seconds=seconds, **found)


def _failed(job: Job, begin: float, error: str, trace: str | None = None) -> Outcome:
    line = " ".join(error.split())
    seconds = round(time.monotonic() - begin, 2)
    return Outcome(job.name, job.options.variant, job.options.precision, "failed", seconds, error=line, trace=trace)


def lost(job: Job, why: str) -> Outcome:
    """The outcome of a job whose worker died."""
    return Outcome(job.name, job.options.variant, job.options.precision, "failed", error=why)


def _run(job: Job) -> dict[str, Any]:
    """Fields of the outcome."""
    from t5edge.exporter.checkpoint.open import open_checkpoint
    from t5edge.tools.sweep.inputs import content, differences, known_inputs, wanted_inputs
    from t5edge.tools.sweep.store import open_store

    store, options = open_store(job.out), job.options
    manifest = store.manifest(job.name)
    if manifest is not None:
        checkpoint = open_checkpoint(options.variant, random_weights=options.random_weights, revision=options.revision)
        changed = differences(
            known_inputs(manifest), wanted_inputs(options, content(checkpoint.revision, checkpoint.content_key()))
        )
        if not changed and store.complete(job.name, manifest):
            return {"status": "kept", **_facts(store.place(job.name), manifest)}
        if changed and not options.force:
            raise UserError(
                f"'{store.place(job.name)}' was made from other inputs ({', '.join(changed[:4])}); "
                "pass --force to replace such bundles, or choose another --out."
            )
    return {"status": "exported", **_facts(store.place(job.name), store.export(job.name, options))}


def _facts(place: str, manifest: Manifest) -> dict[str, Any]:
    return {
        "bundle": place,
        "bytes": manifest.stored_bytes,
        "passed": manifest.passed,
        "weights_sha256": manifest.hashes.get("weights.safetensors"),
    }

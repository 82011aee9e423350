"""One export of a sweep: what is asked for, whether it is there already, and what came of it."""

from __future__ import annotations

import time
import traceback
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from t5edge.errors import GateError, UserError
from t5edge.options import ExportOptions

if TYPE_CHECKING:
    from t5edge.bundle.manifest import Manifest

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
    """What came of a job. ``error`` is one line; ``trace`` a bug's traceback; ``node`` the cluster's name of it."""

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


def outcome_of(job: Job, **facts: Any) -> Outcome:
    """``facts``: the fields of an outcome that the job does not tell."""
    return Outcome(job.name, job.options.variant, job.options.precision, **facts)


def run_job(job: Job) -> Outcome:
    """Do one job in this process; raises for an interruption only. A finished bundle of the same inputs is kept."""
    begin = time.monotonic()
    try:
        facts = _run(job)
    except (UserError, GateError) as error:
        facts = {"status": "failed", "error": " ".join(str(error).split())}
    except Exception as error:  # noqa: BLE001 - reported like the others, with its traceback
        line = " ".join(f"{type(error).__name__}: {error}".split())
        facts = {"status": "failed", "error": line, "trace": traceback.format_exc()}
    return outcome_of(job, seconds=round(time.monotonic() - begin, 2), **facts)


def _run(job: Job) -> dict[str, Any]:
    from t5edge.tools.sweep.inputs import bundle_facts
    from t5edge.tools.sweep.store import Store

    store, status, manifest = Store(job.out), "kept", kept_manifest(job)
    if manifest is None:
        status, manifest = "exported", store.export(job.name, job.options)
    return {"status": status, "bundle": store.place(job.name), **bundle_facts(manifest)}


def kept_manifest(job: Job) -> Manifest | None:
    """The manifest of a finished bundle of the same inputs, which need not be made again.

    Raises:
        UserError: it was made from other inputs, and must not be replaced.
    """
    from t5edge.tools.sweep.inputs import changed_inputs
    from t5edge.tools.sweep.store import Store

    store = Store(job.out)
    manifest = store.manifest(job.name)
    changed = [] if manifest is None else changed_inputs(manifest, job.options)
    if changed and not job.options.force:
        raise UserError(
            f"'{store.place(job.name)}' was made from other inputs ({', '.join(changed[:4])}); "
            "pass --force to replace such bundles, or choose another --out."
        )
    return None if manifest is None or changed or not store.complete(job.name, manifest) else manifest

"""A sweep from its options to its report."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5edge.bundle.precision import precision
from t5edge.errors import UserError
from t5edge.options import wanted_row
from t5edge.parity import memory
from t5edge.progress import Progress, Silent
from t5edge.tools.sweep.cluster import run_on_ray
from t5edge.tools.sweep.jobs import Job, Outcome, run_job
from t5edge.tools.sweep.local import run_here
from t5edge.tools.sweep.options import SweepOptions
from t5edge.tools.sweep.store import is_url

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class SweepReport:
    """All outcomes, in the order of the jobs."""

    out: str
    outcomes: Sequence[Outcome]

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status == "failed"]

    def counts(self) -> dict[str, int]:
        """How many were exported, kept and failed."""
        found = Counter(outcome.status for outcome in self.outcomes)
        return {status: found[status] for status in ("exported", "kept", "failed")}

    def to_dict(self) -> dict[str, Any]:
        """The object of ``--json``."""
        return {"out": self.out, **self.counts(), "exports": [outcome.to_dict() for outcome in self.outcomes]}

    def table(self) -> Table:
        """A row for each export."""
        from rich.table import Table

        title = ", ".join(f"{count} {status}" for status, count in self.counts().items())
        table = Table("bundle", title=title, title_justify="left")
        for column in ("MB", "seconds"):
            table.add_column(column, justify="right")
        for column in ("parity", "what happened"):
            table.add_column(column)
        for outcome in self.outcomes:
            table.add_row(*_cells(outcome))
        return table


def _cells(outcome: Outcome) -> tuple[str, ...]:
    size = "-" if outcome.bytes is None else f"{outcome.bytes / 1e6:.1f}"
    parity = {True: "passed", False: "passed in part", None: "not run"}[outcome.passed] if outcome.bundle else "-"
    colour = {"exported": "green", "kept": "cyan", "failed": "red"}[outcome.status]
    what = f"[{colour}]{outcome.status}[/{colour}]"
    if outcome.error is not None:
        from rich.markup import escape

        what += f": {escape(outcome.error)}"
    return outcome.name, size, f"{outcome.seconds:.1f}", parity, what


def plan_jobs(options: SweepOptions) -> list[Job]:
    """One job for each variant and precision.

    Raises:
        UserError: a pattern without a match, an unknown precision, options that mean nothing in one, or two variants
            whose bundles get the same name.
    """
    rows = [precision(name).name for name in options.precisions]
    jobs: dict[str, Job] = {}
    for variant in options.variants():
        architecture = memory.known_architecture(variant)
        whole = not options.no_verify and not options.blockwise
        if whole and not options.ray:
            whole = memory.verification_fits(architecture)
        peak = memory.peak_bytes(architecture, verify=whole)
        for row in rows:
            one = options.one(_absolute(variant) if options.ray else variant, row)
            wanted_row(one)
            name = one.folder_name
            if name in jobs:
                first = jobs[name].options.variant
                raise UserError(f"'{first}' and '{variant}' would both become '{name}'; export one of them on its own.")
            jobs[name] = Job(name, _destination(options), one, peak)
    return list(jobs.values())


def _destination(options: SweepOptions) -> str:
    out = options.out or "."
    return out if is_url(out) else str(Path(out).expanduser().resolve())


def _absolute(variant: str) -> str:
    """A local folder under a name that other processes understand."""
    folder = Path(variant).expanduser()
    return str(folder.resolve()) if (folder / "config.json").is_file() else variant


def sweep(options: SweepOptions, progress: Progress | None = None) -> SweepReport:
    """Export every variant in every precision; failures are collected, not raised.

    Raises:
        UserError: the sweep itself cannot start (see ``plan_jobs``), or Ray cannot be reached.
    """
    progress, jobs = progress or Silent(), plan_jobs(options)
    found: dict[str, Outcome] = {}
    with progress.stage("sweep", len(jobs), "exports") as stage, closing(_outcomes(jobs, options)) as outcomes:
        for outcome in outcomes:
            found[outcome.name] = outcome
            stage.advance()
            detail = outcome.error or f"{(outcome.bytes or 0) / 1e6:.1f} MB, {outcome.seconds:.1f} s"
            progress.message(f"[{len(found)}/{len(jobs)}] {outcome.name}: {outcome.status}, {detail}")
    return SweepReport(_destination(options), [found[job.name] for job in jobs])


def _outcomes(jobs: Sequence[Job], options: SweepOptions) -> Generator[Outcome, None, None]:
    """Several exports in a process each; a single one in this process."""
    if options.ray is not None:
        yield from run_on_ray(jobs, options.ray)
    elif len(jobs) == 1:
        yield run_job(jobs[0])
    else:
        cores = os.cpu_count() or 1
        workers = min(options.jobs or cores, len(jobs))
        budget = int(memory.USABLE * memory.free_bytes())
        yield from run_here(jobs, workers, budget, max(1, cores // workers))

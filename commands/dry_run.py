"""What an export would do (``--dry-run``), and what can be refused before torch is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from t5edge.bundle.folder import check_target_folder
from t5edge.bundle.manifest import PORTABLE_OPSET
from t5edge.commands.bars import announce_torch
from t5edge.commands.result import Result, shown
from t5edge.errors import UserError
from t5edge.options import ExportOptions, wanted_row
from t5edge.progress import Progress
from t5edge.tools.sweep.options import SweepOptions

if TYPE_CHECKING:
    from rich.console import Console

    from t5edge.tools.planning.export_plan import ExportPlan
    from t5edge.tools.sweep.jobs import Job

KEPT = "would be kept: it was made from the same inputs"


def refuse_early(options: ExportOptions) -> None:
    """Raises: UserError, as the export would, for what shows without torch and the network."""
    from t5edge.exporter.checkpoint.open import check_name

    wanted_row(options)
    check_target_folder(Path(options.out or options.folder_name), options.force)
    if options.random_weights is None:
        check_name(options.variant, options.revision, options.subfolder)


def dry_run(options: SweepOptions, progress: Progress) -> Result:
    """The plan of one export, or of each of a sweep; those of a sweep that cannot start end it with 1.

    Raises:
        UserError: as the export itself.
    """
    if not options.is_sweep:
        one = options.one(options.variant[0], options.precisions[0], options.out)
        plan = _plan(one, progress)
        return Result(plan.to_dict(), lambda console: _show(console, plan))
    return _sweep(options, progress)


def _plan(options: ExportOptions, progress: Progress) -> ExportPlan:
    refuse_early(options)
    announce_torch(progress, f"plan of {options.variant} in {options.precision}")
    from t5edge.tools.planning.export_plan import plan_export

    return plan_export(options, progress)


def _sweep(options: SweepOptions, progress: Progress) -> Result:
    announce_torch(progress, f"plan of {' '.join(options.variant)}")
    from t5edge.tools.sweep.run import plan_jobs

    plans = {job.name: _of_job(job, progress) for job in plan_jobs(options)}

    def show(console: Console) -> None:
        for name, plan in plans.items():
            if isinstance(plan, str):
                console.print(f"[bold]{shown(name)}[/bold]  {shown(plan)}", highlight=False, soft_wrap=True)
            else:
                _show(console, plan)

    data = {name: {"state": plan} if isinstance(plan, str) else plan.to_dict() for name, plan in plans.items()}
    failed = any(isinstance(plan, str) and plan != KEPT for plan in plans.values())
    return Result({"dry_run": True, "exports": data}, show, 1 if failed else 0)


def _of_job(job: Job, progress: Progress) -> ExportPlan | str:
    """The plan of a sweep's export, or why there is none."""
    from t5edge.tools.planning.export_plan import plan_export
    from t5edge.tools.sweep.jobs import kept_manifest
    from t5edge.tools.sweep.store import is_url

    try:
        if kept_manifest(job) is not None:
            return KEPT
        place = job.name if is_url(job.out) else str(Path(job.out) / job.name)
        return plan_export(replace(job.options, out=place), progress)
    except UserError as error:
        return f"cannot start: {error}"


def _show(console: Console, plan: ExportPlan) -> None:
    """A line for each fact, none of them wrapped: paths stay whole."""
    gib = 2**30
    origin = plan.source + (f" at {plan.revision}" if plan.revision else "")
    fetched = f", {plan.download / 1e6:,.0f} MB to download" if plan.download else ""
    facts = {
        "from": f"{origin}, {plan.parameters / 1e6:,.1f} M parameters{fetched}",
        "into": f"{plan.out}" + (f", in place of {plan.replaces}" if plan.replaces else ", which is new"),
        "size": f"about {plan.bytes / 1e6:,.1f} MB, engines left out; {plan.free_disk / 1e9:,.1f} GB of disk are free",
        "memory": f"about {plan.memory / gib:.1f} GiB at its peak; {plan.free_memory / gib:.1f} GiB are free",
        "proof": plan.verify,
        "graphs": f"opset {plan.opset}, {'portable' if plan.opset == PORTABLE_OPSET else 'with fused operators'}",
        "engines": ", ".join(plan.targets) or "none",
    }
    console.print(f"[bold]{shown(plan.variant)}[/bold] in {shown(plan.precision)}: not exported (dry run)")
    for name, fact in facts.items():
        console.print(f"  {name:<8} {shown(fact)}", highlight=False, soft_wrap=True)
    for index, file in enumerate(plan.files):
        console.print(f"  {'' if index else 'files':<8} {shown(file)}", highlight=False, soft_wrap=True)

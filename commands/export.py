"""``t5edge export``: one variant in one precision to a bundle, or a sweep over many."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from t5edge.commands.bars import announce_torch
from t5edge.commands.dry_run import dry_run, refuse_early
from t5edge.commands.parity_table import print_parity
from t5edge.commands.result import Result, shown
from t5edge.errors import require_extra
from t5edge.options import ExportOptions
from t5edge.progress import Progress
from t5edge.tools.sweep.options import SweepOptions

if TYPE_CHECKING:
    from rich.console import Console

PARITY_FILE = "parity.json"
PIPED_WIDTH = 160
"""Columns of a sweep's table where it goes into a file or pipe."""


def run(options: SweepOptions, progress: Progress) -> Result:
    """Export, then show what came of it and where it lies."""
    if not options.no_verify:
        require_extra("onnxruntime")
    if options.dry_run:
        return dry_run(options, progress)
    if options.is_sweep:
        return _many(options, progress)
    return _single(options.one(options.variant[0], options.precisions[0], options.out), progress)


def _single(options: ExportOptions, progress: Progress) -> Result:
    from t5edge.bundle.parity_report import ParityReport

    refuse_early(options)
    announce_torch(progress, f"{options.variant} in {options.precision}")
    from t5edge.pipeline import export_bundle

    bundle = export_bundle(options, progress)
    data = {"bundle": str(bundle.folder), "passed": bundle.passed, **bundle.manifest.to_dict()}

    def show(console: Console) -> None:
        if bundle.passed is not None:
            print_parity(console, ParityReport.read(bundle.folder / PARITY_FILE))
        size = bundle.manifest.stored_bytes
        parity = bundle.manifest.parity
        verdict = "not run" if parity is None else shown(parity.describe())
        console.print(f"[bold]{Path(bundle.folder)}[/bold]  {size / 1e6:.1f} MB  parity {verdict}", highlight=False)

    return Result(data, show)


def _many(options: SweepOptions, progress: Progress) -> Result:
    """Exit 1 when any export failed."""
    announce_torch(progress, f"sweep of {' '.join(options.variant)} in {' '.join(options.precisions)}")
    from t5edge.tools.sweep.run import sweep

    report = sweep(options, progress)

    def show(console: Console) -> None:
        if not console.is_terminal:
            console.width = max(console.width, PIPED_WIDTH)
        console.print(report.table())

    return Result(report.to_dict(), show, 1 if report.failed else 0)

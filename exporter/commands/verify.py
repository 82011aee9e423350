"""``t5edge verify``: the parity ladder on a finished bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exporter.commands.result import Result
from exporter.options import VerifyOptions
from exporter.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console


def run(options: VerifyOptions, progress: Progress) -> Result:
    """Run the ladder; exit 1 when a rung fails, 2 when the target cannot run here."""
    from exporter.parity.ladder import verify

    report = verify(
        options.bundle,
        options.checkpoint,
        target=options.target,
        blockwise=options.blockwise,
        junit=Path(options.junit) if options.junit else None,
        progress=progress,
    )

    def show(console: Console) -> None:
        console.print(report.table())

    if any(result.ran for result in report.results):
        return Result(report.to_dict(), show, 0 if report.passed else 1)
    problem = f"{report.results[0].verdict}; verify on a machine that runs {options.target}, or name another --target."
    return Result(report.to_dict(), show, 2, problem)

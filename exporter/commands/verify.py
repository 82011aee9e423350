"""``t5edge verify``: the parity ladder on a finished bundle."""

from __future__ import annotations

from pathlib import Path

from exporter.commands.result import Result
from exporter.options import VerifyOptions
from exporter.progress import Progress


def run(options: VerifyOptions, progress: Progress) -> Result:
    """Run the ladder; exit 1 when a rung fails."""
    from exporter.parity.ladder import verify

    report = verify(
        options.bundle,
        options.checkpoint,
        target=options.target,
        blockwise=options.blockwise,
        junit=Path(options.junit) if options.junit else None,
        progress=progress,
    )
    return Result(report.to_dict(), lambda console: console.print(report.table()), 0 if report.passed else 1)

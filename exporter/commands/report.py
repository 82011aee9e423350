"""``t5edge report``: one self-contained HTML page about a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exporter.commands.result import Result
from exporter.errors import UserError
from exporter.options import ReportOptions
from exporter.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console


def run(options: ReportOptions, progress: Progress) -> Result:
    """Write the page; beside the bundle unless ``--out`` says otherwise, so that the bundle stays as it is."""
    from calibration.report import report_page

    folder = Path(options.bundle)
    page = report_page(folder)
    resolved = folder.resolve()
    out = Path(options.out) if options.out else resolved.with_name(f"{resolved.name}.html")
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"'{out}' cannot be written: {error.strerror}; choose another --out.") from error

    def show(console: Console) -> None:
        console.print(f"[bold]{out}[/bold]  {len(page) / 1e3:.0f} kB", highlight=False)

    return Result({"report": str(out), "bytes": len(page.encode())}, show)

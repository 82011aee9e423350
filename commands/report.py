"""``t5edge report``: one self-contained HTML page about a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from t5edge.commands.result import Result, shown
from t5edge.options import option
from t5edge.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class ReportOptions:
    """What ``report`` takes."""

    bundle: str = option("a bundle written by export", "", positional=True)
    out: str | None = option("the page to write (default: <bundle>.html beside the bundle)", None, metavar="FILE")


def run(options: ReportOptions, progress: Progress) -> Result:
    """Write the page; beside the bundle unless ``--out`` says otherwise, so that the bundle stays as it is."""
    from t5edge.tools.report.report import report_page, write_page

    folder = Path(options.bundle)
    page = report_page(folder)
    resolved = folder.resolve()
    out = Path(options.out) if options.out else resolved.with_name(f"{resolved.name}.html")
    write_page(page, out, folder)

    def show(console: Console) -> None:
        console.print(f"[bold]{shown(out)}[/bold]  {len(page) / 1e3:.0f} kB", highlight=False)

    return Result({"report": str(out), "bytes": len(page.encode())}, show)

"""``t5edge report``: one self-contained HTML page about a bundle, or about two side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from t5edge.commands.result import Result, say, shown
from t5edge.options import option
from t5edge.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class ReportOptions:
    """What ``report`` takes."""

    bundle: str = option("a bundle written by export", "", positional=True)
    other: str | None = option("another bundle, to set beside it", None, positional=True)
    out: str | None = option("the page to write (default: <bundle>.html beside the bundle)", None, metavar="FILE")


def run(options: ReportOptions, progress: Progress) -> Result:
    """Write the page; beside the bundle unless ``--out`` says otherwise, so that the bundle stays as it is."""
    from t5edge.tools.report.report import compare_page, read_bundle, report_page, write_page
    from t5edge.tools.report.verdict import judge

    folders = [Path(folder) for folder in (options.bundle, options.other) if folder is not None]
    page = report_page(folders[0]) if len(folders) == 1 else compare_page(*folders)
    names = [folder.resolve().name for folder in folders]
    out = Path(options.out) if options.out else folders[0].resolve().with_name(f"{'-beside-'.join(names)}.html")
    write_page(page, out, *folders)

    verdicts = [judge(*read_bundle(folder)) for folder in folders]

    def show(console: Console) -> None:
        console.print(f"[bold]{shown(out)}[/bold]  {len(page) / 1e3:.0f} kB", highlight=False, soft_wrap=True)
        for folder, found in zip(folders, verdicts, strict=True):
            say(console, f"{folder}: {found.word}; {found.counts}")

    said = [
        {"bundle": str(folder), "verdict": found.word, **found.numbers}
        for folder, found in zip(folders, verdicts, strict=True)
    ]
    return Result({"report": str(out), "bytes": len(page.encode()), "bundles": said}, show)

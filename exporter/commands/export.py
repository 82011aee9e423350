"""``t5edge export``: one variant in one precision to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exporter.commands.result import Result
from exporter.options import ExportOptions
from exporter.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console


def run(options: ExportOptions, progress: Progress) -> Result:
    """Export, then show the parity table and where the bundle lies."""
    from exporter.api import export_bundle

    bundle = export_bundle(options, progress)
    data = {"bundle": str(bundle.folder), "passed": bundle.passed, **bundle.manifest}

    def show(console: Console) -> None:
        size = sum(facts["bytes"] for facts in bundle.manifest["files"].values())
        verdict = {True: "parity passed", False: "parity failed", None: "parity not run"}[bundle.passed]
        console.print(f"[bold]{Path(bundle.folder)}[/bold]  {size / 1e6:.1f} MB  {verdict}", highlight=False)

    return Result(data, show)

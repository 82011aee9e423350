"""``t5edge tune``: which kernels and threads run a bundle fastest on this CPU; ``load`` takes them from then on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from t5edge.commands.result import Result, say, shown
from t5edge.errors import UserError
from t5edge.options import option
from t5edge.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console

BUSY = 0.5
"""Work of others, per hardware thread, beside which figures say little of an idle machine."""


@dataclass(frozen=True)
class TuneOptions:
    """What ``tune`` takes."""

    bundle: str = option("a bundle written by export", "", positional=True)
    threads: int | None = option("threads of the kernels (default: all that may pay are measured)", None, metavar="N")

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UserError(f"--threads is {self.threads}; a whole number of at least 1 is needed.")


def run(options: TuneOptions, progress: Progress) -> Result:
    """Measure and remember; the bundle itself is not changed."""
    import psutil

    from t5edge.bundle.manifest import Manifest
    from t5edge.runtime.intact import check_intact
    from t5edge.runtime.onnxruntime.cpu import tune_bundle

    folder = Path(options.bundle)
    manifest = Manifest.read(folder)
    check_intact(folder, manifest)
    load = round(psutil.getloadavg()[0], 2)
    found = tune_bundle(folder, manifest, progress, options.threads)
    data = {**asdict(found), "file": str(found.file), "load": load}

    def show(console: Console) -> None:
        from rich.table import Table

        if not found.timings:
            console.print(
                "this bundle runs one way only: its precision leaves no choice of kernels, nor is one of threads",
                highlight=False,
            )
            return
        table = Table("graph", "kernels", "threads", "fastest, ms", "chosen")
        for timing in found.timings:
            sizes = ", ".join(f"{what} {value:g}" for what, value in timing.milliseconds.items())
            table.add_row(timing.graph, timing.kernels, str(timing.threads or "usual"), sizes, found.mark(timing))
        console.print(table)
        if load > BUSY * (psutil.cpu_count() or 1):
            say(console, f"the machine was busy (load {load}): what is fastest beside other work was kept")
        console.print(f"kept in {shown(found.file)}", highlight=False)

    return Result(data, show)

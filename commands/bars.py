"""What long work says on standard error: bars drawn by rich, lines with their times, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil

from t5edge.progress import Progress, Silent, Stage

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class _Bar:
    def __init__(self, bars: RichProgress, task: TaskID, title: str) -> None:
        self._bars, self._task, self._title = bars, task, title

    def advance(self, amount: int = 1) -> None:
        self._bars.advance(self._task, amount)

    def note(self, text: str) -> None:
        self._bars.update(self._task, description=f"{self._title} [dim]{text}[/dim]")


class Bars:
    """A ``Progress`` that draws one bar per stage; finished stages leave a line with their time."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def stage(self, title: str, total: int | None = None, unit: str = "steps") -> Iterator[Stage]:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        count = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
        columns = (TextColumn("{task.description:<34}"), BarColumn(bar_width=28), count, TimeElapsedColumn())
        with Progress(*columns, console=self._console) as bars:
            task = bars.add_task(title, total=total)
            yield _Bar(bars, task, title)
            if total is None:
                bars.update(task, total=1, completed=1)

    def message(self, text: str) -> None:
        self._console.print(text, highlight=False)


MEANING = {
    "PyTorch reference": "PyTorch computes what the bundle is compared with",
    "activation ranges": "the largest activations on the calibration texts, layer by layer",
    "check the bundle": "the files' hashes against the manifest's",
    "parity": "every check of the bundle as written against PyTorch",
    "quantization gate": "the quantized model against float32 on texts of its own",
    "sensitivity": "what quantizing each matrix alone costs",
    "speed against float32": "encoder and decoder step, timed in turn on this CPU",
    "trace and fuse": "a block of each kind from transformers as a graph, with fused operators",
    "weights": "every tensor of the checkpoint, cast and scaled, into weights.safetensors",
}
"""What the stages do, for ``--verbose``."""


class _Lines:
    """A stage under ``--verbose``."""

    def __init__(self, lines: Lines, title: str) -> None:
        self._lines, self._title, self.done = lines, title, 0

    def advance(self, amount: int = 1) -> None:
        self.done += amount

    def note(self, text: str) -> None:
        self._lines.message(f"{self._title}: {text}")


class Lines:
    """A ``Progress`` that writes a line when a stage begins and ends: seconds since the start, and of the stage."""

    def __init__(self, console: Console) -> None:
        self._console, self._begin = console, time.monotonic()

    @contextmanager
    def stage(self, title: str, total: int | None = None, unit: str = "steps") -> Iterator[Stage]:
        begin, stage = time.monotonic(), _Lines(self, title)
        what = MEANING.get(title, "")
        self.message(f"{title}: {what}" if what else title)
        yield stage
        done = f"{stage.done / 1e6:,.1f} MB" if unit == "bytes" else f"{stage.done} {unit}"
        memory = psutil.Process().memory_info().rss / 2**30
        seconds = time.monotonic() - begin
        self.message(f"{title}: done, {done}, {seconds:.1f} s; {memory:.2f} GiB of memory in use")

    def message(self, text: str) -> None:
        line = f"{time.monotonic() - self._begin:7.1f} s  {text}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def watcher(console: Console, quiet: bool = False, verbose: bool = False) -> Progress:
    """What shows the progress of a command."""
    return Silent() if quiet else Lines(console) if verbose else Bars(console)


def announce_torch(progress: Progress, what: str) -> None:
    """A first line before torch and transformers are imported, which takes seconds; none where they are there."""
    if "torch" not in sys.modules:
        progress.message(f"{what}: loading torch and transformers")

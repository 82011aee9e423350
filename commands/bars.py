"""Progress bars on standard error, drawn by rich."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from t5edge.progress import Stage

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

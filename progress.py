"""Progress of long work: stages with a total, told to whoever watches: bars on the command line, silence in the API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Stage(Protocol):
    """One stage under way."""

    def advance(self, amount: int = 1) -> None: ...

    def note(self, text: str) -> None:
        """A line for the reader, next to the bar."""
        ...


class Progress(Protocol):
    """A watcher of stages."""

    def stage(self, title: str, total: int | None = None, unit: str = "steps") -> AbstractContextManager[Stage]: ...

    def message(self, text: str) -> None: ...


class _SilentStage:
    def advance(self, amount: int = 1) -> None:
        """Nobody watches."""

    def note(self, text: str) -> None:
        """Nobody watches."""


class Silent:
    """Watches nothing."""

    @contextmanager
    def stage(self, title: str, total: int | None = None, unit: str = "steps") -> Iterator[Stage]:
        yield _SilentStage()

    def message(self, text: str) -> None:
        """Nobody watches."""

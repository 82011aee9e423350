"""Signals that end a command: once, and where the first time was lost, at its next step.

Python raises a handler's exception wherever the program is just then. In a finalizer, a callback of a C library, or an
import that tries something and takes any failure for a no, that is nowhere, and the work would go on as if nobody had
asked. So the request is remembered, and raised again when a stage begins or advances. What cleans up has no stages.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from t5edge.progress import Progress, Stage

_asked: list[int] = []


class Stopped(KeyboardInterrupt):
    """A request to end; ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def end_on_signals() -> None:
    """SIGTERM and SIGHUP end the command as Ctrl-C does; what is ignored, as under nohup, stays ignored."""
    defaults = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL}
    for name, default in defaults.items():
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is default:
            signal.signal(number, _stop)


def _stop(number: int, frame: object) -> NoReturn:
    _asked.append(number)
    raise Stopped(number)


def _raise_again() -> None:
    if _asked:
        raise Stopped(_asked[0])


class _Step:
    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def advance(self, amount: int = 1) -> None:
        _raise_again()
        self._stage.advance(amount)

    def note(self, text: str) -> None:
        self._stage.note(text)


class Endable:
    """A ``Progress`` whose stages end where the command was asked to."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    @contextmanager
    def stage(self, title: str, total: int | None = None, unit: str = "steps") -> Iterator[Stage]:
        """See ``Progress``; raises ``Stopped``."""
        _raise_again()
        with self._progress.stage(title, total, unit) as stage:
            yield _Step(stage)

    def message(self, text: str) -> None:
        """See ``Progress``."""
        self._progress.message(text)

"""What a command gives back: an object for ``--json``, something to show a person, and the exit code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from t5edge.errors import printable

if TYPE_CHECKING:
    from rich.console import Console


def shown(text: object) -> str:
    """What comes from outside, for a console: no markup, and nothing that a terminal would obey."""
    from rich.markup import escape

    return escape(printable(str(text)))


def say(console: Console, line: str) -> None:
    """Print a line that is never wrapped nor cut, so that names and commands in it can be copied."""
    console.print(printable(line), highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True)
class Result:
    """``data`` is printed as JSON under ``--json``; otherwise ``show`` draws it on the console.

    ``problem``: the line for standard error of a command that ends with something to show and a
    code other than 0.
    """

    data: Any
    show: Callable[[Console], None]
    exit_code: int = 0
    problem: str = ""

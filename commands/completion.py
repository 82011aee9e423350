"""``t5edge completion``: the script that makes a shell complete commands, flags and files."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5edge.commands.arguments import SHELLS, CompletionOptions, build_parser
from t5edge.commands.result import Result
from t5edge.errors import UserError, missing_package
from t5edge.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console

FILES = {"FILE": "FILE", "PNG": "FILE", "BUNDLE": "DIRECTORY", "DIR": "DIRECTORY", "V": "DIRECTORY"}
"""What shtab completes, by what the help calls a value."""


def run(options: CompletionOptions, progress: Progress) -> Result:
    """Print the script; it is static, so completing runs nothing of t5edge.

    Raises:
        UserError: shtab is missing, or the shell is none that it knows.
    """
    shell = options.shell or Path(os.environ.get("SHELL", "")).name
    if shell not in SHELLS:
        raise UserError(f"the shell '{shell}' is not among those completed; name one of {', '.join(SHELLS)}.")
    try:
        import shtab
    except ImportError as error:
        raise missing_package("shtab") from error
    parser = build_parser()
    for action in _actions(parser):
        kind = FILES.get(str(action.metavar))
        if kind is not None:
            action.complete = getattr(shtab, kind)
    script: str = shtab.complete(parser, shell)

    def show(console: Console) -> None:
        console.file.write(script)

    return Result({"shell": shell, "script": script}, show)


def _actions(parser: argparse.ArgumentParser) -> Iterator[Any]:
    """Of every command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _actions(sub)
        yield action

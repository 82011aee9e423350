"""The command line: flags only, generated from the option dataclasses. ``python cli.py ...`` is ``t5edge ...``.

Exit codes: 0 done and within tolerance; 1 parity or a quality gate failed; 2 the user's error, one line on standard
error; 70 a bug, with its traceback; 130 and 128 + signal when stopped from outside.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import importlib.util
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn


def _use_checkout() -> None:
    """``python cli.py``: this folder is the package ``t5edge``, installed or not; its rooms are no top-level names."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    spec = importlib.util.spec_from_file_location(
        "t5edge", here / "__init__.py", submodule_search_locations=[str(here)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["t5edge"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["t5edge"])


if __name__ == "__main__":
    _use_checkout()

from t5edge.commands.arguments import COMMANDS, OUTPUT, Command, build_parser, parse
from t5edge.commands.signals import Endable, Stopped, end_on_signals
from t5edge.errors import GateError, UserError, explain_import, printable, require_extra
from t5edge.tools.sweep.parent import end_with_parent

__all__ = ["BUG", "COMMANDS", "OUTSIDE", "build_parser", "entry", "main", "parse"]

BUG = 70
"""The exit code of a bug: EX_SOFTWARE of sysexits.h."""


# fmt: off
OUTSIDE = frozenset(getattr(errno, name) for name in (
    "EACCES", "EPERM", "EROFS", "ENOENT", "ENOTDIR", "EISDIR", "EEXIST", "ENOTEMPTY", "ENAMETOOLONG", "ELOOP", "EXDEV",
    "EBUSY", "ETXTBSY", "ENOSPC", "EDQUOT", "EFBIG", "EIO", "ENXIO", "ENODEV", "ESTALE", "EMFILE", "ENFILE", "ENOMEM",
) if hasattr(errno, name))
# fmt: on
"""What the file system refuses whoever is right; any other OSError that reaches the command line is a bug."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    name = given[0] if given else ""
    try:
        return _run_explained(name, given)
    except Exception:  # noqa: BLE001 (no verdict about the bundle and no fault of the user: a code of its own)
        traceback.print_exc()
        return _complain(name, "this is a bug of t5edge; please report it with the lines above", BUG)


def _run_explained(command: str, arguments: Sequence[str]) -> int:
    """``_run``, with one line and an exit code for every end that is no bug."""
    try:
        return _run(*parse(arguments))
    except UserError as error:
        return _complain(command, error, 2)
    except ModuleNotFoundError as error:
        explained = explain_import(error)
        if explained is None:
            raise
        return _complain(command, explained, 2)
    except GateError as error:
        return _complain(command, error, 1)
    except MemoryError:
        return _complain(command, "the memory does not suffice; try it with shorter or fewer texts, or elsewhere", 2)
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Stopped) else signal.SIGINT
        return _complain(command, "interrupted; nothing half-written was left behind", 128 + number)
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except OSError as error:
        if error.errno not in OUTSIDE and not isinstance(error, ConnectionError | TimeoutError):
            raise
        name = f"'{error.filename}': " if error.filename else ""
        return _complain(command, f"{name}{error.strerror or error}", 2)


def _run(command: Command, given: dict[str, Any]) -> int:
    from rich.console import Console

    from t5edge.commands.bars import watcher

    as_json = given.pop("json")
    shown = {name: given.pop(name) for name in OUTPUT if name in given}
    progress = Endable(watcher(Console(stderr=True), **shown))
    chosen = command.options(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    )
    if command.extra:
        require_extra(command.extra)
    result = importlib.import_module(command.module).run(chosen, progress)
    if as_json:
        print(json.dumps(result.data, ensure_ascii=False))
    else:
        result.show(Console())
    sys.stdout.flush()
    if result.problem:
        return _complain(command.name, result.problem, result.exit_code)
    return int(result.exit_code)


def _complain(command: str, problem: object, exit_code: int) -> int:
    line = printable(" ".join(str(problem).split()))
    print(f"t5edge {command}: {line}", file=sys.stderr)
    return exit_code


def _open_streams() -> None:
    """Where a shell closed a stream (``>&-``), Python has none; what is printed then goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open to the end)


def entry() -> NoReturn:
    """``main`` for a process of its own, quick at both ends.

    Imports make a million objects that stay: collecting garbage rarely saves a second. Leaving without tearing torch
    down piece by piece saves another.
    """
    _open_streams()
    end_with_parent()
    end_on_signals()
    gc.set_threshold(200_000, 20, 100)
    exit_code = main()
    logging.shutdown()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    entry()

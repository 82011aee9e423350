"""The command line: flags only, generated from the option dataclasses. ``python cli.py ...`` is ``t5edge ...``.

Exit codes: 0 done and within tolerance; 1 parity or a quality gate failed; 2 the user's error, one line on standard
error; 70 a bug, with its traceback; 130 and 128 + signal when stopped from outside.
"""

from __future__ import annotations

import argparse
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
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, fields
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

from t5edge.commands.bench import BenchOptions
from t5edge.commands.build import BuildOptions
from t5edge.commands.doctor import DoctorOptions
from t5edge.commands.encode import EncodeOptions
from t5edge.commands.generate import GenerateOptions
from t5edge.commands.inspect import InspectOptions
from t5edge.commands.report import ReportOptions
from t5edge.commands.tune import TuneOptions
from t5edge.commands.variants import VariantsOptions
from t5edge.commands.verify import VerifyOptions
from t5edge.errors import EXPORT, GateError, UserError, explain_import, printable, require_extra
from t5edge.tools.sweep.options import SweepOptions
from t5edge.tools.sweep.parent import end_with_parent


@dataclass(frozen=True)
class Command:
    """One subcommand: its options, the module that runs it, its line in ``--help``, and the extra it needs."""

    name: str
    options: type[Any]
    help: str
    extra: str = ""

    @property
    def module(self) -> str:
        """The module that runs the command."""
        return f"t5edge.commands.{self.name}"


COMMANDS = (
    Command("export", SweepOptions, "turn a checkpoint into a bundle and prove it against PyTorch; or many", EXPORT),
    Command("verify", VerifyOptions, "run the parity ladder on a finished bundle", EXPORT),
    Command("build", BuildOptions, "build engines from a bundle, on the device; needs no torch"),
    Command("generate", GenerateOptions, "answer prompts with a bundle; needs no torch"),
    Command("encode", EncodeOptions, "sentence embeddings or hidden states of texts; needs no torch"),
    Command("bench", BenchOptions, "how fast a bundle runs here, beside the machine's limits"),
    Command("tune", TuneOptions, "measure which kernels run a bundle fastest on this CPU, and remember them"),
    Command("inspect", InspectOptions, "what is in a bundle, what each graph costs"),
    Command("report", ReportOptions, "one HTML page: sizes, parity, what was rounded and what it costs"),
    Command("variants", VariantsOptions, "the family as a table"),
    Command("doctor", DoctorOptions, "which targets this machine can build and run, and why not"),
)


BUG = 70
"""The exit code of a bug: EX_SOFTWARE of sysexits.h."""


# fmt: off
OUTSIDE = frozenset(getattr(errno, name) for name in (
    "EACCES", "EPERM", "EROFS", "ENOENT", "ENOTDIR", "EISDIR", "EEXIST", "ENOTEMPTY", "ENAMETOOLONG", "ELOOP", "EXDEV",
    "EBUSY", "ETXTBSY", "ENOSPC", "EDQUOT", "EFBIG", "EIO", "ENXIO", "ENODEV", "ESTALE", "EMFILE", "ENFILE", "ENOMEM",
) if hasattr(errno, name))
# fmt: on
"""What the file system refuses whoever is right; any other OSError that reaches the command line is a bug."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; loads nothing heavy."""
    return _build_parsers()[0]


def _build_parsers() -> tuple[_Parser, dict[str, _Parser]]:
    """The parser of the whole command line, and the parser of each command."""
    parser = _Parser(prog="t5edge", description="T5 checkpoints to bundles for edge devices, proven equal to PyTorch.")
    from t5edge import __version__

    parser.add_argument("--version", action="version", version=f"t5edge {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = commands.add_parser(command.name, help=command.help, description=command.help)
        hints = typing.get_type_hints(command.options)
        for entry in fields(command.options):
            _add_flag(sub, entry, hints[entry.name])
        sub.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    return parser, commands.choices


def parse(arguments: Sequence[str]) -> tuple[Command, dict[str, Any]]:
    """The command and its options. Flags may stand before, between and after the positionals, as in
    ``generate BUNDLE --num-beams 4 "text"``; argparse offers that for parsers without subcommands only.
    """
    parser, parsers = _build_parsers()
    command = next((entry for entry in COMMANDS if arguments and entry.name == arguments[0]), None)
    if command is None:
        parser.parse_args(arguments)  # --help, --version, and what is no command
        parser.error("the command comes first")
    return command, vars(parsers[command.name].parse_intermixed_args(arguments[1:]))


def _add_flag(parser: argparse.ArgumentParser, entry: Field[Any], hint: Any) -> None:
    meta = dict(entry.metadata)
    default = None if entry.default is MISSING else entry.default
    settings: dict[str, Any] = {"help": meta["help"]}
    if default not in (None, "", (), False) and "default" not in meta["help"]:
        settings["help"] += f" (default: {default})"
    if hint is bool:
        parser.add_argument(_flag(entry.name), action="store_true", **settings)
        return
    kind = _scalar_type(hint)
    if typing.get_origin(hint) is tuple:
        settings |= {"type": kind, "default": list(default or ())}
        if meta.get("positional"):
            parser.add_argument(entry.name, nargs="*", metavar=entry.name.upper(), **settings)
        else:
            parser.add_argument(_flag(entry.name), action="extend", nargs="+", metavar=meta.get("metavar"), **settings)
        return
    if meta.get("positional"):
        parser.add_argument(entry.name, metavar=entry.name.upper(), type=kind, help=meta["help"])
        return
    settings |= {"type": kind, "default": default, "metavar": meta.get("metavar")}
    if meta.get("choices"):
        settings["choices"] = meta["choices"]
    parser.add_argument(_flag(entry.name), required=entry.name == "variant", **settings)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _scalar_type(hint: Any) -> Any:
    """The type that parses one value: ``int`` for ``int | None`` and ``tuple[int, ...]``."""
    arguments = [part for part in typing.get_args(hint) if part not in (types.NoneType, Ellipsis)]
    return arguments[0] if arguments else hint


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    command, given = parse(sys.argv[1:] if arguments is None else list(arguments))
    as_json = given.pop("json")
    try:
        return _run_explained(command, given, as_json)
    except Exception:  # noqa: BLE001 (no verdict about the bundle and no fault of the user: a code of its own)
        traceback.print_exc()
        return _complain(command, "this is a bug of t5edge; please report it with the lines above", BUG)


def _run_explained(command: Command, given: dict[str, Any], as_json: bool) -> int:
    """``_run``, with one line and an exit code for every end that is no bug."""
    try:
        return _run(command, given, as_json)
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
        number = error.number if isinstance(error, _Stopped) else signal.SIGINT
        return _complain(command, "interrupted; nothing half-written was left behind", 128 + number)
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except OSError as error:
        if error.errno not in OUTSIDE and not isinstance(error, ConnectionError | TimeoutError):
            raise
        name = f"'{error.filename}': " if error.filename else ""
        return _complain(command, f"{name}{error.strerror or error}", 2)


def _run(command: Command, given: dict[str, Any], as_json: bool) -> int:
    from rich.console import Console

    from t5edge.commands.bars import Bars

    chosen = command.options(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    )
    if command.extra:
        require_extra(command.extra)
    progress = Bars(Console(stderr=True))
    result = importlib.import_module(command.module).run(chosen, progress)
    if as_json:
        print(json.dumps(result.data, ensure_ascii=False))
    else:
        result.show(Console())
    sys.stdout.flush()
    if result.problem:
        return _complain(command, result.problem, result.exit_code)
    return int(result.exit_code)


def _complain(command: Command, problem: object, exit_code: int) -> int:
    line = printable(" ".join(str(problem).split()))
    print(f"t5edge {command.name}: {line}", file=sys.stderr)
    return exit_code


class _Stopped(KeyboardInterrupt):
    """A request to end that is no Ctrl-C; it cleans up in the same way."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def _end_on_signals() -> None:
    """SIGTERM and SIGHUP end the command as Ctrl-C does; what is ignored, as under nohup, stays ignored."""

    def stop(number: int, frame: object) -> NoReturn:
        raise _Stopped(number)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, stop)


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
    _end_on_signals()
    gc.set_threshold(200_000, 20, 100)
    exit_code = main()
    logging.shutdown()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    entry()

"""The command line's arguments: flags, defaults and help, generated from each command's option dataclass."""

from __future__ import annotations

import argparse
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, NoReturn

from t5edge.commands.bench import BenchOptions
from t5edge.commands.build import BuildOptions
from t5edge.commands.config_file import read_config, scalar_type
from t5edge.commands.doctor import DoctorOptions
from t5edge.commands.encode import EncodeOptions
from t5edge.commands.generate import GenerateOptions
from t5edge.commands.inspect import InspectOptions
from t5edge.commands.report import ReportOptions
from t5edge.commands.tune import TuneOptions
from t5edge.commands.variants import VariantsOptions
from t5edge.commands.verify import VerifyOptions
from t5edge.errors import EXPORT
from t5edge.options import option
from t5edge.tools.sweep.options import SweepOptions

SHELLS = ("bash", "zsh", "tcsh")


@dataclass(frozen=True)
class CompletionOptions:
    """What ``completion`` takes."""

    shell: str | None = option("bash, zsh or tcsh (default: yours, by $SHELL)", None, positional=True, choices=SHELLS)


@dataclass(frozen=True)
class Command:
    """One subcommand: its options, its line in ``--help``, the extra it needs, and the groups of its flags there."""

    name: str
    options: type[Any]
    help: str
    extra: str = ""
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """The module that runs the command."""
        return f"t5edge.commands.{self.name}"


# fmt: off
GROUPS = {
    "the checkpoint": (
        "random_weights", "revision", "adapter", "prompt", "subfolder", "task", "vocabulary", "vocabulary_floor",
        "languages",
    ),
    "quantization": ("calibration", "observer", "count_ties", "compute", "require_speedup", "no_rescale"),
    "engines": (
        "compute_capability", "cache", "no_fuse", "separate_weights", "max_batch", "max_source_length",
        "max_target_length",
    ),
    "the proof": ("no_verify", "blockwise", "texts", "time_budget"),
    "many at once": ("jobs", "ray"),
}
# fmt: on
"""Flags of ``export`` by what they are about; the others stand first."""
COMMANDS = (
    Command(
        "export", SweepOptions, "turn a checkpoint into a bundle and prove it against PyTorch; or many", EXPORT, GROUPS
    ),
    Command("verify", VerifyOptions, "run the parity ladder on a finished bundle", EXPORT),
    Command("build", BuildOptions, "build engines from a bundle, on the device; needs no torch"),
    Command("generate", GenerateOptions, "answer prompts with a bundle; needs no torch"),
    Command("encode", EncodeOptions, "sentence embeddings or hidden states of texts; needs no torch"),
    Command("bench", BenchOptions, "how fast a bundle runs here, beside the machine's limits"),
    Command("tune", TuneOptions, "measure which kernels run a bundle fastest on this CPU, and remember them"),
    Command("inspect", InspectOptions, "what is in a bundle, what each graph costs"),
    Command(
        "report",
        ReportOptions,
        "one HTML page about a bundle, or two: verdict, not run, figures",
    ),
    Command("variants", VariantsOptions, "the family as a table"),
    Command("doctor", DoctorOptions, "which targets this machine can build and run, and why not"),
    Command("completion", CompletionOptions, "the script that makes a shell complete commands and flags"),
)
OUTPUT = {
    "quiet": "only results and errors",
    "verbose": "more: what each stage does, when it began, and how long it took",
}
"""Flags of every command besides ``--json``; one of them at most."""


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
        sub = commands.add_parser(command.name, help=command.help, description=command.help, usage=_usage(command))
        hints = typing.get_type_hints(command.options)
        made = {title: sub.add_argument_group(title) for title in command.groups}
        groups = {name: made[title] for title, names in command.groups.items() for name in names}
        for entry in fields(command.options):
            _add_flag(groups.get(entry.name, sub), entry, hints[entry.name])
        sub.add_argument("--json", action="store_true", help="print one JSON object on standard output")
        output = sub.add_mutually_exclusive_group()
        for name, words in OUTPUT.items():
            output.add_argument(_flag(name), action="store_true", default=argparse.SUPPRESS, help=words)
    return parser, commands.choices


def _usage(command: Command) -> str:
    """What must be given; the flags, dozens in places, are listed below it."""
    texts = [entry for entry in fields(command.options) if entry.metadata.get("positional")]
    forms: dict[Any, str] = {(): "[{} ...]", None: "[{}]"}
    names = [forms.get(entry.default, "{}").format(entry.name.upper()) for entry in texts]
    names += ["--variant V"] if command.options is SweepOptions else []
    return " ".join(["t5edge", command.name, *names, "[options]"])


def parse(arguments: Sequence[str]) -> tuple[Command, dict[str, Any]]:
    """The command and its options. Flags may stand before, between and after the positionals, as in
    ``generate BUNDLE --num-beams 4 "text"``; argparse offers that for parsers without subcommands only.

    Raises:
        UserError: the file of ``--config`` cannot be read, or says something that is no option.
        SystemExit: the arguments are wrong, which is said, or ask for help.
    """
    parser, parsers = _build_parsers()
    command = next((entry for entry in COMMANDS if arguments and entry.name == arguments[0]), None)
    if command is None:
        parser.parse_args(arguments)  # --help, --version, and what is no command
        parser.error("the command comes first")
    return command, _with_config(command, parsers[command.name], arguments[1:])


def _with_config(command: Command, parser: _Parser, arguments: Sequence[str]) -> dict[str, Any]:
    """The options of ``arguments``, and those of a ``--config`` that they leave out."""
    given = vars(parser.parse_intermixed_args(arguments))
    if not given.get("config"):
        return given
    filled = read_config(given["config"], command.options)
    parser.set_defaults(**{name: value for name, value in filled.items() if not isinstance(value, list)})
    given = vars(parser.parse_intermixed_args(arguments))
    lists = {name: value for name, value in filled.items() if isinstance(value, list) and not given[name]}
    return given | lists


def _add_flag(parser: argparse._ActionsContainer, entry: Field[Any], hint: Any) -> None:
    meta = dict(entry.metadata)
    default = None if entry.default is MISSING else entry.default
    settings: dict[str, Any] = {"help": meta["help"]}
    if default not in (None, "", (), False) and "default" not in meta["help"]:
        settings["help"] += f" (default: {default})"
    if hint is bool:
        parser.add_argument(_flag(entry.name), action="store_true", **settings)
        return
    kind = scalar_type(hint)
    if typing.get_origin(hint) is tuple:
        settings |= {"type": kind, "default": list(default or ())}
        if meta.get("positional"):
            parser.add_argument(entry.name, nargs="*", metavar=entry.name.upper(), **settings)
        else:
            parser.add_argument(_flag(entry.name), action="extend", nargs="+", metavar=meta.get("metavar"), **settings)
        return
    if meta.get("positional"):
        settings |= {"type": kind, "choices": meta.get("choices"), "metavar": entry.name.upper()}
        settings |= {"nargs": "?"} if default is None else {}
        parser.add_argument(entry.name, **settings)
        return
    settings |= {"type": kind, "default": default, "metavar": meta.get("metavar")}
    if meta.get("choices"):
        settings["choices"] = meta["choices"]
    parser.add_argument(_flag(entry.name), **settings)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")

"""``t5edge verify``: the parity ladder on a finished bundle."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from t5edge.commands.bars import announce_torch
from t5edge.commands.parity_table import print_parity
from t5edge.commands.result import Result
from t5edge.errors import UserError
from t5edge.options import BUDGET_HELP, TEXTS_HELP, check_budget, option
from t5edge.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class VerifyOptions:
    """What ``verify`` takes."""

    bundle: str = option("a bundle written by export", "", positional=True)
    checkpoint: str | None = option(
        "the checkpoint to compare with (default: the variant the bundle was exported from)",
        None,
        metavar="V",
    )
    adapter: tuple[str, ...] = option(
        "the adapters it was exported with, where they have moved (default: where they were)",
        (),
        metavar="DIR",
        repeat=True,
    )
    prompt: tuple[str, ...] = option(
        "the prompts it was exported with, where they have moved (default: where they were)",
        (),
        metavar="NAME=DIR",
        repeat=True,
    )
    target: str = option("onnxruntime, tensorrt or tensorrt-rtx", "onnxruntime", metavar="T")
    texts: str | None = option(TEXTS_HELP, None, metavar="FILE")
    time_budget: float | None = option(BUDGET_HELP, None, metavar="SECONDS")
    blockwise: bool = option("compare layer by layer, with one layer in memory at a time", False)
    junit: str | None = option("write the checks as JUnit XML for CI", None, metavar="FILE")
    baseline: str | None = option(
        "an earlier bundle or its parity.json: fail when a figure got worse than --worse times", None, metavar="FILE"
    )
    worse: float = option("with --baseline: how much worse a figure may be", 1.5, metavar="FACTOR")
    allow_not_run: tuple[str, ...] = option(
        "end with 0 although this check was not run, such as '8 task', or all; may be given several times",
        (),
        metavar="NAME",
        repeat=True,
    )


def run(options: VerifyOptions, progress: Progress) -> Result:
    """Run the ladder; exit 1 when a check fails or one that is not allowed to was not run, 2 when nothing could run."""
    from t5edge.bundle.baseline import against_baseline
    from t5edge.bundle.manifest import Manifest
    from t5edge.bundle.parity_report import ParityReport

    check_budget(options.time_budget)
    if options.worse < 1:
        raise UserError(f"--worse is {options.worse:g}; a factor of at least 1 is needed.")
    known = None if options.baseline is None else ParityReport.read(baseline_file(Path(options.baseline)))
    Manifest.read(Path(options.bundle))
    announce_torch(progress, options.bundle)
    from t5edge.parity.ladder import verify

    report = verify(
        options.bundle,
        options.checkpoint,
        adapters=options.adapter,
        prompts=options.prompt,
        target=options.target,
        blockwise=options.blockwise,
        progress=progress,
        texts=options.texts,
        time_budget=options.time_budget,
    )

    if known is not None and report.ran:
        report = replace(report, results=[*report.results, *against_baseline(report, known, options.worse)])
    if options.junit:
        report.write_junit(Path(options.junit))

    def show(console: Console) -> None:
        print_parity(console, report)

    if report.ran:
        accepted = report.acceptable(options.allow_not_run)
        hint = "" if accepted or report.failed else f"{report.describe()}; --allow-not-run NAME accepts it."
        return Result(report.to_dict(), show, 0 if accepted else 1, hint)
    problem = f"{report.results[0].verdict}; verify on a machine that runs {options.target}, or name another --target."
    return Result(report.to_dict(), show, 2, problem)


def baseline_file(given: Path) -> Path:
    """A bundle's ``parity.json``, or the file itself.

    Raises:
        UserError: there is none.
    """
    path = given / "parity.json" if given.is_dir() else given
    if not path.is_file():
        raise UserError(f"'{path}' does not exist; --baseline takes a bundle that was verified, or its parity.json.")
    return path

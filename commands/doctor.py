"""``t5edge doctor``: which targets this machine can build and run, and why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from t5edge.commands.result import Result, say
from t5edge.commands.table import print_table
from t5edge.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console


COLUMNS = ("target", "version", "builds here", "runs here")


@dataclass(frozen=True)
class DoctorOptions:
    """What ``doctor`` takes: nothing."""


def run(options: DoctorOptions, progress: Progress) -> Result:
    """Look at every target; exit 0 whatever is found, since a missing target is a fact and no failure."""
    from t5edge.bundle.versions import tool_versions
    from t5edge.engines.doctor import int8_report, kernels_report, targets_report, threads_report

    report, int8, kernels, threads = targets_report(), int8_report(), kernels_report(), threads_report()
    data = {"targets": report, "int8": int8, "kernels": kernels, "threads": threads, "tools": tool_versions()}

    def show(console: Console) -> None:
        print_table(console, "", COLUMNS, [_cells(row) for row in report], COLUMNS[1:])
        for row in report:
            if row["reason"]:
                say(console, f"{row['target']}: {row['reason']}")
        if int8 is not None:
            say(console, f"int8 on this CPU: {int8}")
            say(console, f"encoders with int8 or int4 weights alone: {kernels}")
            say(console, f"threads of a session: {threads}")

    return Result(data, show)


def _cells(row: dict[str, Any]) -> list[str]:
    """Of a target; why it cannot do something is too long for a cell."""
    marks = ["yes" if row[key] else "no" for key in ("can_build", "can_run")]
    return [row["target"], row["version"] or "not installed", *marks]

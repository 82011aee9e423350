"""A parity report as a table."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from t5edge.bundle.parity_report import FAIL, PASS, CheckResult, ParityReport, condense, number_text
from t5edge.commands.result import shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

ROOMY = 110
"""Columns of a console that has room for the raw rates and their intervals."""


def print_parity(console: Console, report: ParityReport) -> None:
    """The table, as wide as the console allows; a pipe without ``COLUMNS`` has room for all."""
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = max(console.width, ROOMY)
    console.print(parity_table(report, spread=console.width >= ROOMY))


def parity_table(report: ParityReport, spread: bool = True) -> Table:
    """A row for each measure; of a block-wise run, whose layers are many, those of ``condense``.

    ``spread``: with raw rates and intervals; without them, reasons stand where measures do.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    facts = report.facts
    title = f"parity of {facts.get('variant', 'bundle')} {facts.get('precision', '')} on {facts.get('target', '?')}"
    table = Table(title=title, title_justify="left", caption=shown(report.describe()), box=SIMPLE_HEAD)
    table.add_column("check", no_wrap=True)
    table.add_column("measure")
    for column in ("value", "limit", *(("raw", "95 %") if spread else ())):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=not spread)
    for result in condense(report.results) if facts.get("blockwise") else report.results:
        colour = {PASS: "green", FAIL: "red"}.get(result.verdict, "yellow" if result.missing else "dim")
        cells = (result.name, result.measure if result.ran or spread else result.reason)
        numbers = (number_text(result.value), number_text(result.limit), *(_spread(result) if spread else ()))
        verdict = shown(result.verdict if spread else result.verdict.partition(":")[0])
        table.add_row(*map(shown, (*cells, *numbers)), f"[{colour}]{verdict}[/{colour}]")
    return table


def _spread(result: CheckResult) -> tuple[str, str]:
    """The rate with ties counted as wrong, and the 95 % interval of that rate, or of the value where there is none."""
    raw = result.details.get("raw")
    interval = result.details.get("raw_interval") or result.details.get("interval")
    bounds = "-" if interval is None else " to ".join(number_text(float(bound)) for bound in interval)
    return "-" if raw is None else number_text(float(raw)), bounds

"""A parity report as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t5edge.bundle.parity_report import FAIL, PASS, CheckResult, ParityReport, condense, number_text
from t5edge.commands.result import shown

if TYPE_CHECKING:
    from rich.table import Table


def parity_table(report: ParityReport) -> Table:
    """A row for each measure; of a block-wise run, whose layers are many, those of ``condense``."""
    from rich.table import Table

    facts = report.facts
    title = f"parity of {facts.get('variant', 'bundle')} {facts.get('precision', '')} on {facts.get('target', '?')}"
    table = Table(title=title, title_justify="left", caption=shown(report.describe()))
    table.add_column("check", no_wrap=True)
    table.add_column("measure")
    for column in ("value", "limit", "raw", "95 %"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for result in condense(report.results) if facts.get("blockwise") else report.results:
        colour = {PASS: "green", FAIL: "red"}.get(result.verdict, "yellow" if result.missing else "dim")
        cells = (result.name, result.measure, number_text(result.value), number_text(result.limit), *_spread(result))
        table.add_row(*cells, f"[{colour}]{result.verdict}[/{colour}]")
    return table


def _spread(result: CheckResult) -> tuple[str, str]:
    """The rate with ties counted as wrong, and the 95 % interval of that rate, or of the value where there is none."""
    raw = result.details.get("raw")
    interval = result.details.get("raw_interval") or result.details.get("interval")
    bounds = "-" if interval is None else " to ".join(number_text(float(bound)) for bound in interval)
    return "-" if raw is None else number_text(float(raw)), bounds

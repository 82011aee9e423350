"""Tables whose first column, the names that a reader copies, is never cut: other columns give way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDEST = 10_000
PIPED_WIDTH = 132
"""Columns of a pipe at least, for what is printed below a table too."""
Rows = Sequence[Sequence[str]]


def print_table(
    console: Console, title: str, columns: Sequence[str], rows: Rows, first: Sequence[str], right: bool = False
) -> None:
    """Print ``rows`` with as many ``columns`` as fit, and say which did not.

    Args:
        console: a pipe without ``COLUMNS`` has room for all.
        title: of the table.
        columns: their headings, which may have two lines; the first column is always whole.
        rows: cells as text, with rich's markup.
        first: headings in the order in which they are kept, the first column left out.
        right: numbers are set to the right.
    """
    kept = list(columns)
    table = _table(title, columns, kept, rows, right)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = max(console.width, PIPED_WIDTH, _width(console, table))
    least = [columns[0], *first]
    while _width(console, table) > console.width and len(kept) > 1:
        kept.remove(max(kept, key=least.index))
        table = _table(title, columns, kept, rows, right)
    console.width = max(console.width, _width(console, table))
    console.print(table)
    left_out = [" ".join(column.split()) for column in columns if column not in kept]
    if left_out:
        line = f"no room for: {', '.join(left_out)}; a wider terminal or --json shows them"
        console.print(line, highlight=False, markup=False)


def _width(console: Console, table: Table) -> int:
    """Columns that the table takes where nothing is cut."""
    return console.measure(table, options=console.options.update(max_width=WIDEST)).maximum


def _table(title: str, columns: Sequence[str], kept: Sequence[str], rows: Rows, right: bool) -> Table:
    from rich.table import Table

    table = Table(title=title or None, title_justify="left")
    for column in kept:
        justify = "right" if right and column != columns[0] else "left"
        table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(cell for column, cell in zip(columns, row, strict=True) if column in kept))
    return table

"""Every column of ``t5edge bench`` for each precision, over float32's, in turn: none may be slower.

    python -m benchmarks.columns --work FOLDER --rounds 3 --mask avx2

``FOLDER`` holds bundles ``t5edge-PRECISION``, as ``peers`` makes them. Ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import machine

BASE = "fp32"
COLUMNS = {"encoder_ms": 1, "first_token_ms": 1, "per_token_ms": 1, "tokens_per_second": -1}
"""Medians of ``t5edge bench``; -1 where more is faster."""
NOISE = 0.03
"""What a median of ratios may lie below 1 without being called slower."""


def bench(folder: Path, sizes: list[str], mask: str | None) -> dict[str, dict[str, float]]:
    """Median of each column by "batch x source"."""
    command = [sys.executable, "cli.py", "bench", str(folder), "--json", "--quiet", *sizes]
    rows = json.loads(subprocess.check_output(machine.under(mask, command), text=True))["rows"]
    return {f"{row['batch']} x {row['source']}": {column: row[column]["median"] for column in COLUMNS} for row in rows}


def speeds(rounds: list[dict[str, Any]], precision: str) -> dict[str, dict[str, list[float]]]:
    """By size and column: how many times as fast as float32, in each round."""
    return {
        size: {
            column: [(each[BASE][size][column] / each[precision][size][column]) ** power for each in rounds]
            for column, power in COLUMNS.items()
        }
        for size in rounds[0][BASE]
    }


def show(console: Console, precision: str, found: dict[str, dict[str, list[float]]]) -> int:
    """One table; returns how many of its medians are slower than float32."""
    table = Table("batch x source", *COLUMNS, box=box.MARKDOWN)
    slower = 0
    for size, columns in found.items():
        cells = []
        for ratios in columns.values():
            middle = statistics.median(ratios)
            slower += middle < 1 - NOISE
            cells.append(f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        table.add_row(size, *cells)
    console.print(f"### {precision}\n")
    console.print(table)
    return slower


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--precision", nargs="+", default=["int8-weight", "int8", "int4-weight"])
    parser.add_argument("--batch", nargs="+", default=["1", "4"])
    parser.add_argument("--source", nargs="+", default=["16", "64", "256"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mask", choices=machine.MASKS)
    given = parser.parse_args()
    machine.check(given.mask, sys.executable)
    sizes, rounds = ["--batch", *given.batch, "--source", *given.source], list[dict[str, Any]]()
    for number in range(given.rounds):
        order = [BASE, *given.precision][:: -1 if number % 2 else 1]
        rounds.append({name: bench(given.work / f"t5edge-{name}", sizes, given.mask) for name in order})
    console = Console(width=120)
    console.print(f"Times as fast as {BASE}: {machine.describe(given.mask)}")
    slower = sum(show(console, precision, speeds(rounds, precision)) for precision in given.precision)
    console.print(f"{slower} medians are slower than {BASE}")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())

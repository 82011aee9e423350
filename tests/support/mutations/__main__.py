"""Run mutations on bundles and write the table.

PYTHONPATH=tests .venv/bin/python -m support.mutations --family t5-demo --write docs/parity-mutations.md
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from support.fixtures import OneThread
from support.mutations.families import FAMILIES, PRECISIONS, SMALL
from support.mutations.run import run
from support.mutations.table import read, summary, write


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", action="append", choices=FAMILIES)
    parser.add_argument("--precision", action="append")
    parser.add_argument("--only", default="", help="part of a mutation's name")
    parser.add_argument("--every", type=int, default=1, help="of the mutations only each so many: for large models")
    parser.add_argument("--resume", action="store_true", help="leave out what the written table has already")
    parser.add_argument("--root", type=Path, help="where bundles are kept between runs")
    parser.add_argument(
        "--write", type=Path, help="the table, as Markdown, with JSON beside it; kept for bundles that are not run"
    )
    options = parser.parse_args(arguments)
    onnxruntime.InferenceSession = OneThread
    root = options.root or Path(tempfile.mkdtemp())
    outcomes = read(options.write) if options.write else []
    for family in options.family or SMALL:
        for precision in options.precision or PRECISIONS:
            own = [known for known in outcomes if (known.family, known.precision) == (family, precision)]
            outcomes = [known for known in outcomes if options.resume or known not in own]
            known = {outcome.mutation for outcome in own if options.resume}
            for outcome in run(family, precision, root, options.only, options.every, known):
                outcomes.append(outcome)
                found = outcome.measure or outcome.effect
                print(f"{family} {precision} | {outcome.mutation} | {outcome.caught} | {found}", flush=True)
                if options.write is not None:
                    write(outcomes, options.write)
    print("\n".join(summary(outcomes)))


if __name__ == "__main__":
    main()

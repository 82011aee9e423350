"""Run mutations on bundles and write the table.

PYTHONPATH=tests .venv/bin/python -m support.mutations --family t5-demo --precision fp32 --write docs/mutations.md
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnxruntime

from support.fixtures import OneThread
from support.mutations import MUTATIONS
from support.mutations.families import FAMILIES, bundle_of
from support.mutations.judge import Outcome, first_failure, judge, remembered_reference
from support.mutations.effect import Probe
from support.mutations.table import share, summary, write

PRECISIONS = ("fp32", "fp16", "int8", "int4-weight")


def run(family: str, precision: str, root: Path, chosen: str = "") -> Iterator[Outcome]:
    """Every mutation that applies to one bundle; ``chosen`` is part of their names."""
    bundle = bundle_of(family, precision, root)
    with remembered_reference():
        sound = first_failure(bundle)
        assert not sound[0], f"the sound bundle fails: {sound}"
        probe = Probe(bundle)
        for mutation in MUTATIONS:
            if chosen not in mutation.name:
                continue
            outcome = judge(family, bundle, mutation, root / "mutated", probe)
            if outcome is not None:
                yield outcome


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", action="append", choices=FAMILIES)
    parser.add_argument("--precision", action="append")
    parser.add_argument("--only", default="", help="part of a mutation's name")
    parser.add_argument("--root", type=Path, help="where bundles are kept between runs")
    parser.add_argument("--write", type=Path, help="the table, as Markdown, with JSON beside it")
    options = parser.parse_args(arguments)
    onnxruntime.InferenceSession = OneThread
    root = options.root or Path(tempfile.mkdtemp())
    outcomes: list[Outcome] = []
    for family in options.family or list(FAMILIES)[:3]:
        for precision in options.precision or PRECISIONS:
            for outcome in run(family, precision, root, options.only):
                outcomes.append(outcome)
                print(
                    f"{family} {precision} | {outcome.mutation} | {outcome.caught} | {outcome.measure or outcome.effect}",
                    flush=True,
                )
            caught, counted = share([o for o in outcomes if (o.family, o.precision) == (family, precision)])
            print(f"== {family} {precision}: caught {caught} of {counted}", flush=True)
            if options.write is not None:
                write(outcomes, options.write)
    print("\n".join(summary(outcomes)))


if __name__ == "__main__":
    main()

"""The outcomes as a table: per precision and family how many were caught, and every miss with what it changes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from support.mutations.families import SMALL
from support.mutations.judge import MISSED, Outcome
from t5edge.bundle.files import write_json


def share(outcomes: Sequence[Outcome]) -> tuple[int, int]:
    """How many were caught, of how many that changed anything."""
    counted = [outcome for outcome in outcomes if outcome.counts]
    return sum(outcome.found for outcome in counted), len(counted)


def summary(outcomes: Sequence[Outcome]) -> list[str]:
    """A Markdown table: precision x family, caught of counted."""
    families = list(dict.fromkeys(outcome.family for outcome in outcomes))
    precisions = list(dict.fromkeys(outcome.precision for outcome in outcomes))
    lines = [f"| precision | {' | '.join(families)} | all |", "|---" * (len(families) + 2) + "|"]
    for precision in precisions:
        own = [outcome for outcome in outcomes if outcome.precision == precision]
        cells = [_cell([outcome for outcome in own if outcome.family == family]) for family in families]
        lines.append(f"| {precision} | {' | '.join(cells)} | {_cell(own)} |")
    return lines


def _cell(outcomes: Sequence[Outcome]) -> str:
    caught, counted = share(outcomes)
    return f"{caught} of {counted} ({100 * caught / counted:.0f} %)" if counted else "not run"


def misses(outcomes: Sequence[Outcome]) -> list[str]:
    """A Markdown table of what was not caught."""
    lines = [
        "| mutation | precision | family | expected | KL (nats) | top-1 | where |",
        "|---|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        if outcome.counts and not outcome.found:
            effect = outcome.effect
            numbers = f"{effect.kl:.2g} | {100 * effect.top1:.1f} % | " if effect else "- | - | "
            where = "; ".join([effect.where, *effect.other]) if effect else outcome.measure
            if outcome.caught != MISSED:
                where = f"{outcome.caught} {outcome.measure}"
            facts = (outcome.mutation, outcome.precision, outcome.family, outcome.expected)
            lines.append(f"| {' | '.join(facts)} | {numbers}{where} |")
    if len(lines) == 2:
        return ["None."]
    return lines


def everything(outcomes: Sequence[Outcome]) -> list[str]:
    """A Markdown table: mutation x (precision, family), the check that caught it."""
    columns = list(dict.fromkeys((outcome.precision, outcome.family) for outcome in outcomes))
    found = {(outcome.mutation, outcome.precision, outcome.family): outcome.caught for outcome in outcomes}
    titles = " | ".join(f"{precision} {family}" for precision, family in columns)
    lines = [f"| mutation | {titles} |", "|---" * (len(columns) + 1) + "|"]
    for mutation in dict.fromkeys(outcome.mutation for outcome in outcomes):
        cells = [found.get((mutation, *column), "-") for column in columns]
        lines.append(f"| {mutation} | {' | '.join(cells)} |")
    return lines


def read(path: Path) -> list[Outcome]:
    """The outcomes that ``write`` left beside ``path``; none where it has not run yet."""
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return []
    return [Outcome.from_dict(data) for data in json.loads(beside.read_text(encoding="utf-8"))["outcomes"]]


def write(outcomes: Sequence[Outcome], path: Path) -> None:
    """``path`` as Markdown, and the same beside it as JSON."""
    small = [outcome for outcome in outcomes if outcome.family in SMALL]
    large = [outcome for outcome in outcomes if outcome.family not in SMALL]
    parts = [
        "# Mutations: what the parity ladder catches",
        "",
        "Finished bundles were damaged in these ways, their hashes corrected, and `verify` was run. A cell names the "
        "check that failed first; `refused`: the bundle is not opened at all; `-`: the mutation does not apply; "
        "`no effect`: every answer is the same to the bit.",
        "",
        *summary(small),
        "",
        *(_of_large(large) if large else ()),
        "## Not caught",
        "",
        *misses(outcomes),
        "",
        "## All",
        "",
        *everything(small),
        "",
        *(["## All of the large model's", "", *everything(large), ""] if large else ()),
    ]
    path.write_text("\n".join(parts), encoding="utf-8")
    write_json(path.with_suffix(".json"), {"outcomes": [outcome.to_dict() for outcome in outcomes]})


def _of_large(outcomes: Sequence[Outcome]) -> list[str]:
    return [
        "A sample of them on more than 150 million random weights. There the check that is made for the fault is run "
        "first, then the others, cheap ones first:",
        "",
        *summary(outcomes),
        "",
    ]

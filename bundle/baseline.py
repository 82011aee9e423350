"""A parity report beside an earlier one: which figures got worse, and by how much.

    figures with an upper limit : worse when above ``factor`` times the old one
    rates with a lower limit    : worse when 1 - rate is

A figure that uses less than a hundredth of its limit does not count: such are roundings, which differ between machines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from t5edge.bundle.parity_report import FAIL, PASS, CheckResult, ParityReport, condense

NAME = "baseline"
NEGLIGIBLE = 0.01
VARYING = re.compile(r" \(.*?\)|, worst at .*|: .*")
COUNTED = "positions judged"
"""How much was judged is no quality: a time budget allows more on a faster machine."""


def against_baseline(report: ParityReport, baseline: ParityReport, factor: float) -> list[CheckResult]:
    """A failure for each figure of ``report`` that got worse or is gone; a pass where there is none."""
    old = {key: result for key, result in _by_measure(baseline).items() if result.value is not None}
    new = _by_measure(report)
    worse = list(_worse(old, new, factor))
    if worse:
        return worse
    return [CheckResult(NAME, f"figures more than {factor:g} times as bad", 0.0, 0.0, PASS, {"compared": len(old)})]


def _by_measure(report: ParityReport) -> dict[tuple[str, str], CheckResult]:
    """Results by check and measure, without what a measure says of one run alone: how many texts, which weight."""
    named = {(result.name, VARYING.sub("", result.measure)): result for result in condense(report.results)}
    return {key: result for key, result in named.items() if not key[1].startswith(COUNTED)}


def _worse(
    old: dict[tuple[str, str], CheckResult], new: dict[tuple[str, str], CheckResult], factor: float
) -> Iterator[CheckResult]:
    for (name, measure), before in old.items():
        now = new.get((name, measure))
        if now is None or now.value is None:
            yield CheckResult(NAME, f"{name}, {measure}: measured before and not now", None, None, FAIL)
            continue
        left, right, limit = _distance(before), _distance(now), _distance(before, limit=True)
        if right > factor * left and right > NEGLIGIBLE * limit:
            allowed = factor * left if now.value == right else 1 - factor * left
            yield CheckResult(NAME, f"{name}, {measure}", now.value, allowed, FAIL, {"before": before.value})


def _distance(result: CheckResult, *, limit: bool = False) -> float:
    """How far from perfect a figure is (or its limit): itself, or what a rate with a lower limit lacks to 1."""
    value = result.limit if limit else result.value
    assert value is not None or limit
    if value is None:
        return 0.0
    is_rate = result.value is not None and result.limit is not None and 0 < result.limit <= result.value <= 1
    return 1 - value if is_rate and result.verdict == PASS else value

"""Two bundles side by side: which figure is better, and by how much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from t5edge.bundle.parity_report import CheckResult, ParityReport
from t5edge.bundle.records import NOTICEABLE
from t5edge.tools.report.verdict import at_least, figure

Facts = dict[str, Any]
NEGLIGIBLE = 0.01
"""Share of its limit below which a figure is rounding: no side is better then."""
WORSE = 1.5
"""Times as bad as the other from which on a figure of parity is worse, as ``verify --baseline`` has it."""


def compared(first: Facts, second: Facts) -> Facts:
    """What the page of two bundles shows, from what the page of each does."""
    measures = list(_measures(first["parity"], second["parity"]))
    return {
        "first": first,
        "second": second,
        "warnings": list(_warnings(first, second)),
        "same_checkpoint": first["origin"]["key"] is not None and first["origin"]["key"] == second["origin"]["key"],
        "facts": list(_origins(first, second)),
        "groups": [
            ("Proof", "Measures of the checks, engines and layouts.", list(_proofs(first, second))),
            ("Size and speed", "Times are those of the exporting machine's CPU.", list(_costs(first, second))),
            ("Accuracy", "Beside PyTorch in float32; ties are counted as wrong.", list(_rates(first, second))),
            ("Parity", PARITY_NOTE, [row for row in measures if row["better"]]),
        ],
        "alike": [row for row in measures if not row["better"]],
    }


PARITY_NOTE = (
    f"Measures that both have and that differ by {WORSE:g}x or more, the limit of each in brackets. Below a hundredth "
    "of their limits they are rounding, and neither is better."
)


def _row(
    name: str,
    texts: tuple[str, str],
    values: tuple[float, float] | None,
    more: bool = False,
    alike: float = 1 / NOTICEABLE,
) -> Facts:
    """A line of a table; ``more``: the larger value is the better one, otherwise the smaller.

    ``alike``: up to so many times the other, a value is about the same.
    """
    row = {"name": name, "first": texts[0], "second": texts[1], "better": "", "by": "same"}
    if values is None:
        return {**row, "by": "not in both"}
    low, high = min(values), max(values)
    if low == high or (low > 0 and high / low < alike):
        return row if low == high else {**row, "by": "about the same"}
    better = "A" if (values[0] == high) == more else "B"
    return {**row, "better": better, "by": f"by {high / low:.2f}x" if low > 0 else ""}


def _warnings(first: Facts, second: Facts) -> Iterator[str]:
    if first["origin"]["key"] != second["origin"]["key"]:
        yield "These are not bundles of the same checkpoint: figures differ for that reason too."
    if first["origin"]["cpu"] != second["origin"]["cpu"]:
        yield "They were proven on different CPUs, or it is not recorded: times cannot be compared."


def _origins(first: Facts, second: Facts) -> Iterator[tuple[str, str, str]]:
    for name, key in (("checkpoint hash", "key"), ("revision", "revision"), ("weights sha256", "weights")):
        yield name, _known(first, key, "none")[:16], _known(second, key, "none")[:16]
    for name, key in (("proved", "date"), ("on", "cpu"), ("system", "system")):
        yield name, _known(first, key), _known(second, key)
    tools = {tool: None for side in (first, second) for tool in side["manifest"].tools}
    for tool in tools:
        one, other = (str(side["manifest"].tools.get(tool) or "none") for side in (first, second))
        yield tool, one, other


def _known(side: Facts, key: str, absent: str = "not recorded") -> str:
    return str(side["origin"][key] or absent)


def _proofs(first: Facts, second: Facts) -> Iterator[Facts]:
    for name in ("failed", "not run", "passed"):
        key = name.replace(" ", "_")
        counts = tuple(_count(getattr(side["verdict"], key)) for side in (first, second))
        row = _row(name, (str(counts[0]), str(counts[1])), (counts[0], counts[1]), more=False)
        yield row if name != "passed" else {**row, "better": "", "by": "-"}


def _count(found: Any) -> int:
    return int(found) if isinstance(found, int) else len(found)


def _costs(first: Facts, second: Facts) -> Iterator[Facts]:
    sizes = (first["size"], second["size"])
    yield _row("graphs and weights", (f"{sizes[0] / 1e6:,.1f} MB", f"{sizes[1] / 1e6:,.1f} MB"), sizes)
    speeds = [side["manifest"].speed for side in (first, second)]
    one, other = ({} if speed is None else speed.quantized.parts for speed in speeds)
    for name in {**one, **other}:
        both = (one[name], other[name]) if name in one and name in other else None
        yield _row(name, (_milliseconds(one.get(name)), _milliseconds(other.get(name))), both)


def _milliseconds(time: float | None) -> str:
    return "not run" if time is None else f"{time:,.2f} ms"


def _rates(first: Facts, second: Facts) -> Iterator[Facts]:
    known = {row["name"]: row for row in second["accuracy"]}
    for row in first["accuracy"]:
        if row["name"] in known:
            other = known[row["name"]]
            found = _row(row["name"], (row["rate"], other["rate"]), (row["value"], other["value"]), more=True)
            yield found if not found["better"] else {**found, "by": ""}


def _measures(first: ParityReport | None, second: ParityReport | None) -> Iterator[Facts]:
    if first is None or second is None:
        return
    known = _by_name(second)
    for key, one in _by_name(first).items():
        other = known.get(key)
        if other is None or one.value is None or other.value is None:
            continue
        texts = (_with_limit(one), _with_limit(other))
        row = _row(": ".join(key), texts, (one.value, other.value), at_least(one), WORSE)
        yield {**row, "better": "", "by": "rounding"} if row["better"] and _rounding(one, other) else row


def _by_name(report: ParityReport) -> Mapping[tuple[str, str], CheckResult]:
    return {(result.name, result.measure): result for result in report.results if result.value is not None}


def _with_limit(result: CheckResult) -> str:
    limit = "" if result.limit is None else f" ({figure(result.limit)})"
    return f"{figure(result.value)}{limit}"


def _rounding(*results: CheckResult) -> bool:
    return all(
        result.limit and result.value is not None and not at_least(result) and result.value < NEGLIGIBLE * result.limit
        for result in results
    )

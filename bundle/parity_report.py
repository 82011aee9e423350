"""What the ladder found: as objects, as ``parity.json``, and as JUnit XML for CI."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from t5edge.bundle.files import regular
from t5edge.bundle.schema import read_as
from t5edge.errors import UserError

PASS, FAIL, NOT_RUN, NOT_APPLICABLE = "pass", "fail", "not run", "not applicable"
ALL = "all"
"""Allows every check to be left out."""
FORMER = re.compile(r"not run: (the compute dtype is |\S+ emulates |the checkpoint has no (task|tokenizer))")
"""What version 0.1 called not run, and is not applicable."""
NOT_FINITE = ("nan", "inf", "-inf")


@dataclass(frozen=True)
class CheckResult:
    """One measure of one check.

    ``verdict`` is ``pass``, ``fail``, ``not run: reason`` or ``not applicable: reason``. ``value`` and ``limit`` are in
    the measure's own unit, None where nothing was measured; ``details`` are further numbers, JSON-able.
    """

    name: str
    measure: str
    value: float | None
    limit: float | None
    verdict: str
    details: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def unpack(data: Mapping[str, Any]) -> dict[str, Any]:
        """NaN and infinity are written by their names."""
        return {key: float(value) if value in NOT_FINITE else value for key, value in data.items()}

    @property
    def ran(self) -> bool:
        return not self.verdict.startswith((NOT_RUN, NOT_APPLICABLE))

    @property
    def missing(self) -> bool:
        """Whether it applies and was not run all the same."""
        return self.verdict.startswith(NOT_RUN) and FORMER.match(self.verdict) is None

    @property
    def reason(self) -> str:
        """Why it was not run, or does not apply."""
        return self.verdict.partition(": ")[2]

    def describe(self) -> str:
        """One line for people."""
        limit = "" if self.limit is None else f", limit {number_text(self.limit)}"
        value = "" if self.value is None else f": {number_text(self.value)}{limit}"
        return f"{self.name}, {self.measure}{value}"

    def short(self) -> dict[str, Any]:
        """For the manifest: everything but the details."""
        return {
            "name": self.name,
            "measure": self.measure,
            "value": _plain(self.value),
            "limit": _plain(self.limit),
            "verdict": self.verdict,
        }

    def to_dict(self) -> dict[str, Any]:
        return {**self.short(), "details": _plain(dict(self.details))}


def at_most(name: str, measure: str, value: float, limit: float, **details: Any) -> CheckResult:
    """Pass when ``value`` is a number no larger than ``limit``."""
    return CheckResult(name, measure, value, limit, PASS if value <= limit else FAIL, details)


def at_least(name: str, measure: str, value: float, limit: float, **details: Any) -> CheckResult:
    """Pass when ``value`` is a number no smaller than ``limit``."""
    return CheckResult(name, measure, value, limit, PASS if value >= limit else FAIL, details)


def not_run(name: str, reason: str) -> CheckResult:
    """Recorded, and never a pass."""
    return CheckResult(name, "-", None, None, f"{NOT_RUN}: {reason}")


def not_applicable(name: str, reason: str) -> CheckResult:
    """There is nothing in this bundle that the check could judge; the report passes without it."""
    return CheckResult(name, "-", None, None, f"{NOT_APPLICABLE}: {reason}")


def failure(name: str, what: str, **details: Any) -> CheckResult:
    """Something that must not be there at all: no number says how bad it is."""
    return CheckResult(name, what, None, None, FAIL, details)


@dataclass(frozen=True)
class ParityReport:
    """All results in the order of the ladder. ``facts``: variant, precision, target, seconds, blockwise."""

    results: Sequence[CheckResult]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "results", tuple(self.results))

    @property
    def passed(self) -> bool:
        """Everything that applies was run, and nothing failed."""
        return self.ran and not self.failures and not self.missing

    @property
    def failed(self) -> bool:
        """Something failed, or nothing at all was run."""
        return bool(self.failures) or not self.ran

    @property
    def ran(self) -> bool:
        """Whether anything was run."""
        return any(result.ran for result in self.results)

    @property
    def failures(self) -> list[CheckResult]:
        return [result for result in self.results if result.verdict == FAIL]

    @property
    def missing(self) -> list[CheckResult]:
        """What applies and was not run."""
        return [result for result in self.results if result.missing]

    @property
    def verdict(self) -> str:
        """``passed``, ``failed``, ``not run``, or ``passed except what was not run``."""
        if not self.ran:
            return NOT_RUN
        if self.failures:
            return "failed"
        return f"passed except what was {NOT_RUN}" if self.missing else "passed"

    def describe(self) -> str:
        """The verdict in one line, with what was not run and why."""
        names = "; ".join(f"{result.name}: {result.reason}" for result in self.missing)
        return f"{self.verdict} ({names})" if self.ran and names else self.verdict

    def acceptable(self, allowed: Collection[str]) -> bool:
        """Passed, but for checks that ``allowed`` names (``8 task``, ``8`` or ``task``; ``all`` for any)."""
        names = [{result.name, *result.name.split(" ", 1), ALL} for result in self.missing]
        return not self.failed and all(known & set(allowed) for known in names)

    def verdicts(self) -> dict[str, str]:
        """Each check's verdict: fail before pass before not run before not applicable."""
        worst: dict[str, str] = {}
        for result in self.results:
            known = worst.get(result.name)
            if known is None or _rank(result.verdict) > _rank(known):
                worst[result.name] = result.verdict
        return worst

    def to_dict(self) -> dict[str, Any]:
        """The content of ``parity.json``."""
        return self._with([result.to_dict() for result in self.results])

    def _with(self, rungs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        missing = [{"name": result.name, "reason": result.reason} for result in self.missing]
        listed = {"not_run": missing} if missing else {}
        return {"passed": self.passed, **listed, **_plain(dict(self.facts)), "rungs": list(rungs)}

    @staticmethod
    def unpack(data: Mapping[str, Any]) -> dict[str, Any]:
        """The facts stand beside the results, which JSON calls rungs; whether it passed follows from them."""
        facts = {name: fact for name, fact in data.items() if name not in ("passed", "not_run", "rungs")}
        return {"facts": facts} | ({"results": data["rungs"]} if "rungs" in data else {})

    @staticmethod
    def read(path: Path) -> ParityReport:
        """The report in a ``parity.json``.

        Raises:
            UserError: it cannot be read.
        """
        problems: list[str] = []
        try:
            found = read_as(ParityReport, json.loads(regular(path).read_text(encoding="utf-8")), "", problems)
        except (OSError, ValueError, RecursionError) as error:
            problems = [str(error)]
        if problems:
            raise UserError(f"'{path}' cannot be read ({'; '.join(problems)}); verify the bundle again.")
        report: ParityReport = found
        return report

    def without_details(self) -> ParityReport:
        """As the manifest holds it."""
        return replace(self, results=[replace(result, details={}) for result in self.results])

    def short(self) -> dict[str, Any]:
        """The manifest's entry."""
        return self._with([result.short() for result in self.results])

    def junit(self) -> str:
        """JUnit XML: a test case for each measure; what was not run or does not apply is skipped, with its reason."""
        suite = ElementTree.Element("testsuite", _suite_attributes(self.results))
        for result in self.results:
            suite.append(_test_case(result, str(self.facts.get("variant", "bundle"))))
        root = ElementTree.Element("testsuites")
        root.append(suite)
        ElementTree.indent(root)
        return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"

    def write_junit(self, path: Path) -> None:
        """Write ``junit()`` to ``path``, whose folder is made where it is missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.junit(), encoding="utf-8")


def condense(results: Iterable[CheckResult]) -> list[CheckResult]:
    """Every failure, and of each kind of part and measure the result closest to its limit."""
    known = list(results)
    worst: dict[tuple[str, str], CheckResult] = {}
    for result in known:
        key = (result.name.rstrip("0123456789 "), result.measure.rstrip("0123456789 "))
        if key not in worst or _closeness(result) > _closeness(worst[key]):
            worst[key] = result
    chosen = {id(result) for result in worst.values()}
    return [result for result in known if result.verdict == FAIL or id(result) in chosen]


def _closeness(result: CheckResult) -> float:
    """Share of the limit that is used up; infinite where something failed outright."""
    if result.value is None or result.limit is None:
        return float("inf")
    return result.value / result.limit if result.limit else float(result.value)


def _rank(verdict: str) -> int:
    return {FAIL: 3, PASS: 2}.get(verdict, int(verdict.startswith(NOT_RUN)))


def _suite_attributes(results: Iterable[CheckResult]) -> dict[str, str]:
    known = list(results)
    failures = sum(result.verdict == FAIL for result in known)
    skipped = sum(not result.ran for result in known)
    counts = {"tests": len(known), "failures": failures, "errors": 0, "skipped": skipped}
    return {"name": "t5edge parity", **{name: str(count) for name, count in counts.items()}}


def _test_case(result: CheckResult, variant: str) -> ElementTree.Element:
    seconds = str(result.details.get("seconds", 0))
    name = result.name if result.measure == "-" else f"{result.name}: {result.measure}"
    case = ElementTree.Element("testcase", {"classname": f"parity.{variant}", "name": name, "time": seconds})
    comparison = f"value {number_text(result.value)}, limit {number_text(result.limit)}"
    if result.verdict == FAIL:
        ElementTree.SubElement(case, "failure", {"message": comparison}).text = str(_plain(dict(result.details)))
    elif not result.ran:
        ElementTree.SubElement(case, "skipped", {"message": result.verdict})
    else:
        ElementTree.SubElement(case, "system-out").text = comparison
    return case


def number_text(value: float | None) -> str:
    """Three digits for people, ``-`` for nothing."""
    if value is None:
        return "-"
    return f"{value:.3g}"


def _plain(value: Any) -> Any:
    """JSON-able: numpy scalars as numbers, NaN and infinity as their names, since JSON has neither."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value

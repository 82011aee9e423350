"""What a report says first: passed or failed, and what was not run, with counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from t5edge.bundle.engine_record import EngineEntry
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.parity_report import FAIL, PASS, CheckResult, ParityReport, number_text
from t5edge.runtime.tensorrt.records import run_words

Facts = dict[str, Any]
OPEN, NOT_PROVEN = "passed except what was not run", "not proven"


class NotRun(NamedTuple):
    """Something that applies and was not run, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Verdict:
    """Of a bundle.

    Attributes:
        word: passed, failed, ``OPEN`` or ``NOT_PROVEN``.
        passed, failed, not_applicable: measures of the checks, and engines and layouts that were run.
        not_run: all that applies and was not run.
        failures: one line each.
    """

    word: str
    passed: int
    not_applicable: int
    not_run: tuple[NotRun, ...]
    failures: tuple[str, ...]

    @property
    def failed(self) -> int:
        return len(self.failures)

    @property
    def numbers(self) -> dict[str, int]:
        """How many of each."""
        not_run = len(self.not_run)
        return {"passed": self.passed, "failed": self.failed, "not_run": not_run, "not_applicable": self.not_applicable}

    @property
    def counts(self) -> str:
        """``numbers`` in words."""
        return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in self.numbers.items())

    @property
    def reasons(self) -> list[tuple[str, str]]:
        """What was not run, that with the same reason together."""
        names: dict[str, list[str]] = {}
        for missing in self.not_run:
            names.setdefault(missing.reason, []).append(missing.name)
        return [(", ".join(known), reason) for reason, known in names.items()]

    @property
    def kind(self) -> str:
        """How it is coloured: pass, fail or open."""
        return {"passed": "pass", "failed": "fail"}.get(self.word, "open")


def judge(manifest: Manifest, parity: ParityReport | None) -> Verdict:
    """The verdict on the checks, on another layout, and on engines."""
    results = () if parity is None else parity.results
    failures = [result.describe() for result in results if result.verdict == FAIL]
    failures += [problem for problem in [manifest.layout and manifest.layout.problem()] if problem]
    failures += [f"{name}: {run_words(entry)} and failed" for name, entry in _engines(manifest) if _ran(entry) is False]
    missing = tuple(_not_run(manifest, parity))
    ran = sum(result.verdict == PASS for result in results)
    ran += sum(_ran(entry) is True for _, entry in _engines(manifest))
    ran += manifest.layout is not None and manifest.layout.parity is not None and manifest.layout.parity.passed
    skipped = sum(not result.ran and not result.missing for result in results)
    return Verdict(_word(parity, failures, missing), ran, skipped, missing, tuple(failures))


def _word(parity: ParityReport | None, failures: Sequence[str], missing: Sequence[NotRun]) -> str:
    if failures:
        return "failed"
    if parity is None or not parity.ran:
        return NOT_PROVEN
    return OPEN if missing else "passed"


def _not_run(manifest: Manifest, parity: ParityReport | None) -> Iterator[NotRun]:
    if parity is None:
        yield NotRun("every check of parity", "the bundle was written without verification")
    else:
        yield from (NotRun(result.name, result.reason) for result in parity.missing)
    if manifest.layout is not None and manifest.layout.parity is None:
        yield NotRun(f"layout {manifest.layout.name}", "the bundle was written without verification")
    for name, entry in _engines(manifest):
        if _ran(entry) is None:
            yield NotRun(f"engines of {name}", run_words(entry).removeprefix("not run: "))


def _engines(manifest: Manifest) -> Iterator[tuple[str, EngineEntry]]:
    for target, capabilities in manifest.engines.items():
        for capability, entry in capabilities.items():
            yield f"{target} {capability}", entry


def _ran(entry: EngineEntry) -> bool | None:
    """Whether engines ran and passed; None where they did not run."""
    return None if isinstance(entry.run, str) else entry.run.verdict == PASS


def targets(manifest: Manifest, parity: ParityReport | None) -> list[tuple[str, str]]:
    """What the bundle is for, and what is known of it there."""
    backend = "onnxruntime" if parity is None else str(parity.facts.get("target", "onnxruntime"))
    found = [(backend, "not proven" if parity is None else parity.verdict)]
    if manifest.layout is not None:
        parity_of_layout = manifest.layout.parity
        state = "not run" if parity_of_layout is None else "passed" if parity_of_layout.passed else "failed"
        found.append((f"layout {manifest.layout.name}", state))
    return found + [(name, run_words(entry).partition(":")[0]) for name, entry in _engines(manifest)]


def figure(value: float | None) -> str:
    """A figure as pages show it everywhere: whole numbers whole, three digits of others."""
    whole = value is not None and float(value).is_integer() and abs(value) < 1e6
    return f"{value:,.0f}" if whole else number_text(value)


def at_least(result: CheckResult) -> bool:
    """Whether the limit is a lower one, as far as value and verdict show it; at the limit itself rates are."""
    value, limit = result.value, result.limit
    if value is None or limit is None:
        return False
    if value == limit:
        return 0.5 <= limit <= 1
    return (value > limit) == (result.verdict == PASS) and result.verdict in (PASS, FAIL)


def used(result: CheckResult) -> float | None:
    """Share of its limit that a figure uses; of a rate with a lower limit, of what that leaves to 1."""
    value, limit = result.value, result.limit
    if value is None or limit is None:
        return None
    if not at_least(result):
        return value / limit if limit else float(value)
    if limit <= 1:
        return (1 - value) / (1 - limit) if limit < 1 else float(value < 1)
    return limit / value if value else None


def checks(parity: ParityReport) -> list[Facts]:
    """Each check with its measures, the one closest to its limit, and its verdict; what failed or did not run first."""
    found = []
    for name, verdict in parity.verdicts().items():
        results = [result for result in parity.results if result.name == name]
        closest = max(results, key=_closeness)
        word, _, reason = verdict.partition(": ")
        found.append(
            {
                "name": name,
                "verdict": word,
                "kind": {PASS: "pass", FAIL: "fail"}.get(word, "open" if closest.missing else "none"),
                "count": len(results),
                "closest": reason or closest.measure,
                "value": figure(closest.value),
                "limit": figure(closest.limit),
                "used": _percent(used(closest)),
                "results": [_row(result) for result in results],
            }
        )
    order = {"fail": 0, "open": 1}
    return sorted(found, key=lambda check: order.get(str(check["kind"]), 2))


def _closeness(result: CheckResult) -> float:
    share = used(result)
    failed = result.verdict == FAIL
    return 1e9 if failed else -1.0 if share is None or share != share else share  # NaN is unlike itself


def _row(result: CheckResult) -> Facts:
    return {
        "measure": result.measure if result.ran else result.reason,
        "value": figure(result.value),
        "limit": figure(result.limit),
        "used": _percent(used(result)),
        "verdict": result.verdict.partition(":")[0],
        "kind": {PASS: "pass", FAIL: "fail"}.get(result.verdict, "open" if result.missing else "none"),
    }


def _percent(share: float | None) -> str:
    return "" if share is None or share != share else f"{share:.0%}"


def accuracy(parity: ParityReport) -> list[Facts]:
    """Task accuracy beside PyTorch's, and how often the same tokens come out; with 95 % intervals."""
    tasks, tokens = [], []
    for result in parity.results:
        details, rate = result.details, result.details.get("raw")
        if "pytorch" in details and "bundle" in details:
            tasks += [
                _rate(side, float(details[key]) / 100, details.get(f"{key}_interval"), 100, result)
                for side, key in (("task, this bundle", "bundle"), ("task, PyTorch in float32", "pytorch"))
            ]
        elif rate is not None and any(word in result.measure for word in SAME):
            tokens.append(
                _rate(f"{result.name}: {result.measure}", float(rate), details.get("raw_interval"), 1, result)
            )
    return tasks + tokens


SAME = ("agreement", "equal")
"""Measures that are rates begin or end so."""


def _rate(name: str, rate: float, interval: Any, scale: float, result: CheckResult) -> Facts:
    bounds = "" if interval is None else f"{interval[0] / scale:.1%} to {interval[1] / scale:.1%}"
    count = next((result.details[key] for key in ("examples", "decided", "rows") if key in result.details), "")
    return {"name": name, "value": rate, "rate": f"{rate:.1%}", "row": (name, f"{rate:.1%}", bounds, str(count))}


TILES = (("mean KL", "3 texts"), ("top-1 agreement", "3 texts"), ("relative error", "2 encoder"))
"""Measures on tiles, by their beginnings and checks; each with the limit that it has in the table."""


def tiles(manifest: Manifest, parity: ParityReport | None, size: int) -> list[Facts]:
    """The figures that a reader asks for first."""
    share = f"{size / (4 * manifest.architecture.parameters):.0%}"
    found = [_tile(f"{size / 1e6:,.1f} MB", f"graphs and weights, {share} of the parameters in float32")]
    if manifest.speed is not None:
        slow, ratio = manifest.speed.slower_parts, manifest.speed.speedup
        words = "float32's speed on the exporting CPU" + (f"; slower: {', '.join(slow)}" if slow else "")
        found.append(_tile(f"{ratio:.2f}x", words, "fail" if ratio < 1 else "open" if slow else ""))
    for measure, check in TILES:
        results = () if parity is None else parity.results
        result = next((one for one in results if one.name == check and one.measure.startswith(measure)), None)
        if result is not None:
            kind = "fail" if result.verdict == FAIL else ""
            found.append(_tile(figure(result.value), result.measure, kind, figure(result.limit)))
    return found


def _tile(shown: str, words: str, kind: str = "", limit: str = "") -> Facts:
    return {"figure": shown, "words": words, "kind": kind, "limit": limit}

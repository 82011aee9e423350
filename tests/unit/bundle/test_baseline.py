from __future__ import annotations

import pytest

from t5edge.bundle.baseline import against_baseline
from t5edge.bundle.parity_report import CheckResult, ParityReport, at_least, at_most, not_run


def report(*results: CheckResult) -> ParityReport:
    return ParityReport(results)


OLD = report(
    at_most("2 logits", "KL", 0.001, 0.01),
    at_least("3 texts", "top-1", 0.998, 0.99),
    at_most("graphs", "error", 1e-7, 1e-3),
    not_run("8 task", "no texts"),
)


def worse(*results: CheckResult, factor: float = 1.5) -> list[str]:
    found = against_baseline(report(*results), OLD, factor)
    return [result.measure for result in found if result.verdict == "fail"]


@pytest.mark.parametrize(
    ("kl", "top1", "error", "expected"),
    [
        (0.001, 0.998, 1e-7, []),
        (0.0014, 0.9975, 9e-6, []),
        (0.0016, 0.998, 1e-7, ["2 logits, KL"]),
        (0.001, 0.996, 1e-7, ["3 texts, top-1"]),
        (0.001, 0.998, 2e-5, ["graphs, error"]),
        (0.0005, 1.0, 0.0, []),
    ],
)
def test_what_got_worse_is_named(kl: float, top1: float, error: float, expected: list[str]) -> None:
    results = at_most("2 logits", "KL", kl, 0.01), at_least("3 texts", "top-1", top1, 0.99)
    assert worse(*results, at_most("graphs", "error", error, 1e-3)) == expected


def test_what_is_gone_is_worse_and_what_is_new_is_not() -> None:
    found = worse(at_most("2 logits", "KL", 0.001, 0.01), at_most("new", "x", 9.0, 10.0))
    assert found == [
        "3 texts, top-1: measured before and not now",
        "graphs, error: measured before and not now",
    ]


def test_what_a_run_says_of_itself_is_no_other_measure() -> None:
    def one(texts: int, positions: int, weight: str, error: float) -> ParityReport:
        return report(
            at_least("3 texts", f"positions judged ({texts} of 137 texts, bundled texts)", positions, 2000),
            at_most("weights", f"half steps from the checkpoint, worst at {weight}", error, 1.01),
        )

    old = one(137, 10_500, "encoder.wo", 0.5)
    assert [result.verdict for result in against_baseline(one(30, 2_100, "decoder.wo", 0.6), old, 1.5)] == ["pass"]
    (found,) = against_baseline(one(137, 10_500, "decoder.wo", 1.0), old, 1.5)
    assert found.measure == "weights, half steps from the checkpoint"


def test_the_factor_counts() -> None:
    results = at_most("2 logits", "KL", 0.0019, 0.01), at_least("3 texts", "top-1", 0.9965, 0.99)
    assert worse(*results, at_most("graphs", "error", 1e-7, 1e-3), factor=2) == []


def test_a_pass_says_how_much_was_compared() -> None:
    (found,) = against_baseline(OLD, OLD, 1.0)
    assert found.verdict == "pass"
    assert found.details == {"compared": 3}

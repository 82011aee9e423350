from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from t5edge.bundle.parity_report import CheckResult, ParityReport, at_least, at_most, failure, not_applicable, not_run
from t5edge.commands.parity_table import parity_table

GOOD = at_most("2 encoder", "relative error", 1e-6, 1e-5, positions=np.int64(3))
BAD = at_most("3 logits", "mean KL (nats)", float("nan"), 1e-3)
SKIPPED = not_run("8 task", "PyTorch does not fit")
IDLE = not_applicable("3 range", "nothing to round")
FACTS = {"variant": "t5-demo", "precision": "fp32", "target": "onnxruntime"}


def test_a_measure_passes_on_its_side_of_the_limit() -> None:
    assert at_most("r", "m", 1.0, 1.0).verdict == "pass"
    assert at_most("r", "m", 1.1, 1.0).verdict == "fail"
    assert at_least("r", "m", 0.99, 1.0).verdict == "fail"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_fails(value: float) -> None:
    assert at_most("r", "m", value, 1.0).verdict == "fail"
    assert at_least("r", "m", float("nan"), 1.0).verdict == "fail"


def test_not_run_neither_passes_nor_fails_and_nothing_run_is_no_pass() -> None:
    assert SKIPPED.verdict == "not run: PyTorch does not fit"
    assert (SKIPPED.ran, SKIPPED.reason) == (False, "PyTorch does not fit")
    assert not ParityReport([GOOD, SKIPPED]).passed
    assert not ParityReport([GOOD, SKIPPED]).failed
    assert not ParityReport([SKIPPED]).passed
    assert ParityReport([SKIPPED]).failed
    assert not ParityReport([GOOD, BAD]).passed
    assert ParityReport([GOOD, BAD]).failures == [BAD]


def test_what_does_not_apply_stands_in_no_ones_way() -> None:
    assert ParityReport([GOOD, IDLE]).passed
    assert ParityReport([IDLE]).failed
    assert (IDLE.ran, IDLE.missing, IDLE.reason) == (False, False, "nothing to round")
    assert ParityReport([IDLE, not_run("3 range", "why")]).verdicts() == {"3 range": "not run: why"}


def test_the_verdict_names_what_was_not_run() -> None:
    report = ParityReport([GOOD, SKIPPED, IDLE])
    assert report.describe() == "passed except what was not run (8 task: PyTorch does not fit)"
    assert report.to_dict()["not_run"] == [{"name": "8 task", "reason": "PyTorch does not fit"}]
    assert ParityReport([GOOD, IDLE]).describe() == "passed"
    assert ParityReport([BAD, SKIPPED]).verdict == "failed"
    assert ParityReport([SKIPPED]).verdict == "not run"


@pytest.mark.parametrize("name", ["8 task", "8", "task", "all"])
def test_what_may_be_left_out_is_named(name: str) -> None:
    report = ParityReport([GOOD, SKIPPED])
    assert report.acceptable([name])
    assert not report.acceptable(["7 generation", "9"])
    assert not ParityReport([GOOD, BAD, SKIPPED]).acceptable([name])
    assert not ParityReport([SKIPPED]).acceptable([name])


def test_what_version_0_1_called_not_run_is_told_apart() -> None:
    idle = [
        not_run("8 task", "the checkpoint has no task (heldout.jsonl)"),
        not_run("3 range", "the compute dtype is float"),
    ]
    assert ParityReport([GOOD, *idle]).passed


def test_a_check_has_the_worst_verdict_of_its_measures() -> None:
    passed = CheckResult("3 logits", "top-1", 1.0, 1.0, "pass")
    verdicts = ParityReport([passed, BAD, passed, GOOD, SKIPPED]).verdicts()
    assert verdicts == {"3 logits": "fail", "2 encoder": "pass", "8 task": SKIPPED.verdict}


def test_json_is_strict_and_holds_all_there_is() -> None:
    report = ParityReport([GOOD, BAD, failure("4 cache", "NaN or infinity in the logits", broken=2)], FACTS)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["passed"] is False
    assert data["variant"] == "t5-demo"
    assert data["rungs"][0] == {
        "name": "2 encoder",
        "measure": "relative error",
        "value": 1e-6,
        "limit": 1e-5,
        "verdict": "pass",
        "details": {"positions": 3},
    }
    assert data["rungs"][1]["value"] == "nan"
    assert data["rungs"][2]["value"] is None
    assert "details" not in report.short()["rungs"][0]


def test_junit_counts_failures_and_skips_with_reasons(tmp_path: Path) -> None:
    path = tmp_path / "ci" / "parity.xml"
    ParityReport([GOOD, BAD, SKIPPED], FACTS).write_junit(path)
    (suite,) = ElementTree.parse(path).getroot()
    assert {key: suite.get(key) for key in ("tests", "failures", "skipped", "errors")} == {
        "tests": "3",
        "failures": "1",
        "skipped": "1",
        "errors": "0",
    }
    good, bad, skipped = suite
    assert good.get("name") == "2 encoder: relative error"
    assert good.find("failure") is None
    failed, reason = bad.find("failure"), skipped.find("skipped")
    assert failed is not None
    assert failed.get("message") == "value nan, limit 0.001"
    assert reason is not None
    assert reason.get("message") == "not run: PyTorch does not fit"


def test_the_table_has_a_row_for_each_measure() -> None:
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(parity_table(ParityReport([GOOD, BAD, SKIPPED], FACTS)))
    text = console.export_text()
    assert "parity of t5-demo fp32 on onnxruntime" in text
    assert "1e-05" in text
    assert "nan" in text
    assert "not run: PyTorch does not fit" in text
    assert "failed" in text


def test_a_result_in_one_line() -> None:
    assert GOOD.describe() == "2 encoder, relative error: 1e-06, limit 1e-05"
    assert failure("3 logits", "NaN or infinity in the logits").describe() == "3 logits, NaN or infinity in the logits"


def test_a_report_comes_back_from_its_file(tmp_path: Path) -> None:
    report = ParityReport((at_most("3 logits", "relative error", 1e-6, 1e-5, steps=3), not_run("9 gpu", "no GPU")), {})
    path = tmp_path / "parity.json"
    path.write_text(json.dumps(report.to_dict()))
    assert ParityReport.read(path).to_dict() == report.to_dict()

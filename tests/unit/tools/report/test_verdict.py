"""What a page says first."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.manifests import engine_record, tiny_manifest, write_manifest
from t5edge.bundle.engine_record import EngineEntry, EngineRun
from t5edge.bundle.parity_report import CheckResult, ParityReport, at_least, at_most, failure, not_applicable, not_run
from t5edge.bundle.records import Layout, LayoutParity, Speed, Times
from t5edge.tools.report.report import report_page, slower
from t5edge.tools.report.verdict import accuracy, checks, figure, judge, targets, tiles, used

GOOD = at_most("2 encoder", "relative error, encoder output", 2e-6, 1e-5)
RATE = at_least("3 texts", "top-1 agreement, judged texts", 0.99, 0.98, raw=0.97, raw_interval=[0.9, 0.99], decided=300)
BAD = at_most("3 texts", "mean KL (nats), judged texts", 0.2, 0.1)
MISSING = not_run("8 task", "no task")
WORTHLESS = not_applicable("3 range", "nothing to round")
TASK = at_most("8 task", "exact match lost (points)", 1.0, 0.5, bundle=94.0, pytorch=95.0, examples=200)
ENTRY = EngineEntry({"encoder": engine_record()}, "not run: no GPU")


def entry(verdict: str) -> EngineEntry:
    return EngineEntry({"encoder": engine_record()}, EngineRun("an RTX", verdict, ()))


def layout(error: float) -> Layout:
    return Layout("optimum", LayoutParity({"merged": error}, 0.1, error <= 0.1))


@pytest.mark.parametrize(
    ("facts", "results", "word", "counts"),
    [
        ({}, [GOOD, RATE, WORTHLESS], "passed", (2, 0, 0, 1)),
        ({}, [GOOD, BAD, MISSING], "failed", (1, 1, 1, 0)),
        ({}, [GOOD, MISSING], "passed except what was not run", (1, 0, 1, 0)),
        ({}, None, "not proven", (0, 0, 1, 0)),
        ({}, [MISSING], "not proven", (0, 0, 1, 0)),
        ({"engines": {"tensorrt-rtx": {"8.6": ENTRY}}}, [GOOD], "passed except what was not run", (1, 0, 1, 0)),
        ({"engines": {"tensorrt-rtx": {"8.6": entry("pass")}}}, [GOOD], "passed", (2, 0, 0, 0)),
        ({"engines": {"tensorrt-rtx": {"8.6": entry("fail")}}}, [GOOD], "failed", (1, 1, 0, 0)),
        ({"layout": layout(0.0)}, [GOOD], "passed", (2, 0, 0, 0)),
        ({"layout": layout(0.2)}, [GOOD], "failed", (1, 1, 0, 0)),
        ({"layout": Layout("optimum")}, [GOOD], "passed except what was not run", (1, 0, 1, 0)),
    ],
)
def test_the_verdict_counts_everything_that_applies(
    facts: dict[str, Any], results: list[CheckResult] | None, word: str, counts: tuple[int, ...]
) -> None:
    found = judge(tiny_manifest(**facts), None if results is None else ParityReport(results))
    assert found.word == word
    assert (found.passed, found.failed, len(found.not_run), found.not_applicable) == counts


def test_what_was_not_run_for_the_same_reason_stands_together() -> None:
    engines = {"tensorrt-rtx": {"8.6": ENTRY, "8.9": ENTRY}}
    found = judge(tiny_manifest(engines=engines), ParityReport([GOOD, MISSING]))
    assert found.reasons == [
        ("8 task", "no task"),
        ("engines of tensorrt-rtx 8.6, engines of tensorrt-rtx 8.9", "no GPU"),
    ]


def test_targets_say_what_is_known_of_each() -> None:
    manifest = tiny_manifest(engines={"tensorrt-rtx": {"8.6": ENTRY, "8.9": entry("pass")}}, layout=Layout("optimum"))
    assert targets(manifest, ParityReport([GOOD], {"target": "onnxruntime"})) == [
        ("onnxruntime", "passed"),
        ("layout optimum", "not run"),
        ("tensorrt-rtx 8.6", "not run"),
        ("tensorrt-rtx 8.9", "ran on an RTX"),
    ]


@pytest.mark.parametrize(
    ("result", "share"),
    [
        (GOOD, 0.2),
        (BAD, 2.0),
        (at_least("x", "rate", 0.99, 0.98), 0.5),
        (at_least("x", "rate", 0.5, 0.9), 5.0),
        (at_least("x", "rate", 1.0, 1.0), 0.0),
        (at_least("x", "positions", 4000, 2000), 0.5),
        (at_most("x", "wrong entries", 0, 0), 0.0),
        (failure("x", "NaN"), None),
    ],
)
def test_the_share_of_a_limit_that_is_used(result: CheckResult, share: float | None) -> None:
    assert used(result) == (share if share is None else pytest.approx(share))


def test_checks_show_what_is_closest_to_its_limit_failures_first() -> None:
    report = ParityReport([GOOD, replace(GOOD, measure="cross keys", value=9e-6), RATE, BAD, MISSING, WORTHLESS])
    found = checks(report)
    assert [check["name"] for check in found] == ["3 texts", "8 task", "2 encoder", "3 range"]
    assert [check["verdict"] for check in found] == ["fail", "not run", "pass", "not applicable"]
    assert (found[2]["closest"], found[2]["used"], found[2]["count"]) == ("cross keys", "90%", 2)
    assert found[1]["closest"] == "no task"


def test_accuracy_is_that_of_the_task_and_with_ties_as_wrong() -> None:
    rows = accuracy(ParityReport([RATE, TASK, replace(BAD, details={"raw": 0.5})]))
    assert [row["row"] for row in rows] == [
        ("task, this bundle", "94.0%", "", "200"),
        ("task, PyTorch in float32", "95.0%", "", "200"),
        ("3 texts: top-1 agreement, judged texts", "97.0%", "90.0% to 99.0%", "300"),
    ]


def test_a_tile_has_the_figure_and_the_limit_of_the_table() -> None:
    report = ParityReport([GOOD, RATE, BAD])
    shown = {result["measure"]: result for check in checks(report) for result in check["results"]}
    for tile in tiles(tiny_manifest(), report, 1000)[1:]:
        row = shown[tile["words"]]
        assert (tile["figure"], tile["limit"]) == (row["value"], row["limit"])
        assert (tile["kind"] == "fail") == (row["verdict"] == "fail")


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (2227.0, "2,227"), (0.0, "0"), (1.25e-7, "1.25e-07"), (float("nan"), "nan")]
)
def test_figures(value: float | None, text: str) -> None:
    assert figure(value) == text


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(0.5, "slower"), (0.97, "slower, within what runs differ by"), (1.0, "as fast"), (1.04, "as fast"), (2, "faster")],
)
def test_what_a_ratio_of_times_says(ratio: float, words: str) -> None:
    assert slower(ratio) == words


def test_verdict_origin_and_what_was_not_run_come_before_anything_else(tmp_path: Path) -> None:
    facts = {"target": "onnxruntime", "date": "2026-11-26T08:00:00+00:00", "cpu": "a CPU, 2 threads", "seconds": 9.0}
    write_manifest(
        tmp_path,
        parity=ParityReport([GOOD, MISSING], facts),
        revision="0123abcd" * 5,
        content_key="fedcba98" * 8,
        engines={"tensorrt-rtx": {"8.6": ENTRY}},
        speed=Speed(64, 16, 2, Times(2.0, 3.0), Times(4.0, 1.0), 2.0, 1 / 3, 0.4),
    )
    page = report_page(tmp_path)
    first = re.sub(r"<[^>]+>", " ", page.partition("<body>")[2].partition("<section>")[0])
    first = " ".join(first.split())
    order = ["Passed except what was not run", "2 not run", "8 task", "no task", "0123abcd" * 5, "fedcba98fedcba98"]
    order += ["onnxruntime", "2026-11-26 08:00 UTC", "a CPU, 2 threads", "slower: decoder step"]
    places = [first.index(said) for said in order]
    assert places == sorted(places)
    assert page.count("slower</span>") == 2


def test_every_cell_has_the_name_of_its_column_for_narrow_pages(tmp_path: Path) -> None:
    write_manifest(tmp_path, parity=ParityReport([GOOD, RATE, BAD, MISSING]), engines={"tensorrt-rtx": {"8.6": ENTRY}})
    page = report_page(tmp_path)
    assert "max-width: 640px" in page
    assert "prefers-color-scheme: dark" in page
    page = page.partition("<body>")[2]
    assert page.count("<td") == page.count(" data-label=") > 40

"""One plain export stays what it was; everything else is a sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.manifests import tiny_manifest
from t5edge import pipeline
from t5edge.cli import main
from t5edge.options import ExportOptions
from t5edge.tools.sweep.jobs import Outcome
from t5edge.tools.sweep.options import SweepOptions
from t5edge.tools.sweep.run import SweepReport


def test_a_single_export_gets_plain_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[ExportOptions] = []

    def export_bundle(options: ExportOptions, progress: Any) -> pipeline.Bundle:
        asked.append(options)
        return pipeline.Bundle(Path("there"), tiny_manifest())

    monkeypatch.setattr(pipeline, "export_bundle", export_bundle)
    command = ["export", "--variant", "t5-small", "--precision", "fp16", "--target", "onnxruntime", "--out", "there"]
    assert main([*command, "--max-batch", "2", "--json"]) == 0
    wanted = ExportOptions(variant="t5-small", precision="fp16", target=("onnxruntime",), out="there", max_batch=2)
    assert asked == [wanted]
    assert type(asked[0]) is ExportOptions
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"bundle": "there", "passed": None, **tiny_manifest().to_dict()}
    assert main(["export", "--variant", "t5-small"]) == 0
    assert asked[-1] == ExportOptions(variant="t5-small")


@pytest.mark.parametrize(("status", "code"), [("exported", 0), ("kept", 0), ("failed", 1)])
def test_a_sweep_exits_1_when_any_export_failed(
    status: Any, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(options: SweepOptions, progress: Any) -> SweepReport:
        done = Outcome("t5-small-fp16", "t5-small", "fp16", "exported", 1.5, "out/t5-small-fp16", 10**6)
        other = Outcome("t5-small-fp32", "t5-small", "fp32", status, error="[why]" if status == "failed" else None)
        return SweepReport("out", [done, other])

    monkeypatch.setattr("t5edge.tools.sweep.run.sweep", run)
    command = ["export", "--variant", "t5-small", "--precision", "fp16", "fp32", "--out", "out"]
    assert main(command) == code
    shown = capsys.readouterr().out
    assert ("failed: [why]" in shown) == (status == "failed")
    assert main([*command, "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in found["exports"]] == ["t5-small-fp16", "t5-small-fp32"]
    assert found["failed"] == code

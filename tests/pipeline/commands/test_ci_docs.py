"""The commands of docs/ci.md, as they stand there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.bundles import Workshop
from t5edge.bundle.parity_report import ParityReport
from t5edge.cli import main

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "ci.md").read_text("utf-8")
EXPORT = TEXT.partition("```toml\n")[2].partition("```")[0]
LINES = [line.strip() for line in TEXT.splitlines()]
STEPS = [
    line.removeprefix("- run: ").removeprefix("- ") for line in LINES if line.startswith("- ") and "t5edge " in line
]


def test_a_figure_that_drifted_fails(
    demo: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a baseline that was a hundred times better; the JUnit file names it. The ladder runs once for both."""
    bundle, junit = demo.bundle("int8"), tmp_path / "parity.xml"
    assert main(["verify", str(bundle), "--allow-not-run", "all", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (tmp_path / "now.json").write_text(json.dumps(report))
    monkeypatch.setattr("t5edge.parity.ladder.verify", lambda *_, **__: ParityReport.read(tmp_path / "now.json"))
    better = [
        rung for rung in report["rungs"] if rung["value"] and rung["limit"] and rung["value"] > 0.1 * rung["limit"]
    ]
    better = [rung for rung in better if rung["value"] < rung["limit"]]
    better[0]["value"] /= 100
    (tmp_path / "parity.json").write_text(json.dumps(report))
    arguments = ["verify", str(bundle), "--allow-not-run", "all", "--baseline", str(tmp_path), "--junit", str(junit)]
    assert main([*arguments, "--json"]) == 1
    failed = [rung for rung in json.loads(capsys.readouterr().out)["rungs"] if rung["verdict"] == "fail"]
    assert [rung["name"] for rung in failed] == ["baseline"]
    assert "baseline: " in junit.read_text("utf-8")


@pytest.mark.parametrize(
    ("extra", "message"),
    [(["--baseline", "missing"], "takes a bundle that was verified"), (["--worse", "0.5"], "a factor of at least 1")],
)
def test_a_wrong_baseline_is_one_line(
    demo: Workshop, extra: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("t5edge.parity.ladder.verify", lambda *_, **__: pytest.fail("verified first"))
    assert main(["verify", str(demo.bundle("fp32")), *extra]) == 2
    assert message in capsys.readouterr().err


def test_the_file_of_the_docs_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "export.toml").write_text(EXPORT)
    assert main(["export", "--config", "export.toml", "--out", "bundle", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["variant"], plan["precision"], plan["out"]) == ("t5-demo", "int8", "bundle")


@pytest.mark.slow
def test_the_steps_of_both_pipelines_run(tmp_path: Path) -> None:
    """In turn, from an empty folder; the first export is the baseline of both."""
    assert len(STEPS) == 6
    (tmp_path / "prompts.txt").write_text("spell 1984\nspell 7\n")
    (tmp_path / "export.toml").write_text(EXPORT)
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    for step in STEPS:
        if " verify " in step and not (tmp_path / "baseline").exists():
            (tmp_path / "baseline").mkdir()
            shutil.copy(tmp_path / "bundle" / "parity.json", tmp_path / "baseline")
        if " export " in step and (tmp_path / "bundle").exists():
            shutil.rmtree(tmp_path / "bundle")
            (tmp_path / "answers.jsonl").unlink()
        subprocess.run(["bash", "-ec", step], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "parity.xml").exists()

"""``--dry-run``: what would be done, and nothing that is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.bundles import Workshop
from t5edge.bundle.manifest import Manifest
from t5edge.cli import main

CAPABILITY = ("--target", "tensorrt-rtx", "--compute-capability", "8.6")


def export(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["export", *arguments])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_plan_names_the_files_and_the_size_that_an_export_has(
    demo: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    made = demo.bundle(precision)
    arguments = ["--variant", "t5-demo", "--precision", precision, "--cache", "both", "--target", "onnxruntime"]
    code, out, _ = export(capsys, *arguments, "--out", str(tmp_path / "new"), "--dry-run", "--json")
    plan, manifest = json.loads(out), Manifest.read(made)
    assert (code, plan["dry_run"], plan["replaces"]) == (0, True, None)
    assert set(plan["files"]) - {"parity.json"} == {*manifest.files, "bundle.json"}
    assert plan["bytes"] == pytest.approx(manifest.stored_bytes, rel=0.05)
    assert plan["memory"] > 2**30
    assert plan["verify"] == "whole"
    assert not (tmp_path / "new").exists()


def test_the_plan_says_what_would_be_replaced(
    demo: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = demo.fresh(tmp_path / "demo", "fp32")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code, shown, _ = export(capsys, "--variant", "t5-demo", "--out", str(out), "--force", *CAPABILITY, "--dry-run")
    assert code == 0
    assert f"{out}, in place of t5-demo in fp32" in shown
    assert "engines/tensorrt-rtx/8.6/encoder.engine" in shown
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("--variant", "no-such-thing"),
        ("--variant", "google/t5-efficient-tiny"),
        ("--variant", "./missing"),
        ("--variant", "t5-demo", "--precision", "fp12"),
        ("--variant", "t5-demo", "--target", "abacus"),
        ("--variant", "t5-demo", "--task", "encode", "--count-ties", "--precision", "int8"),
        ("--variant", "t5-demo", "--precision", "int8", "--calibration", "missing.txt"),
        ("--variant", "t5-demo", "--precision", "bf16", "--layout", "optimum"),
        ("--variant", "t5-demo", "--out", "taken"),
    ],
    ids=lambda arguments: " ".join(arguments[1:]),
)
def test_what_an_export_refuses_is_refused_with_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "taken").write_text("mine")
    found = [export(capsys, *arguments, *more) for more in ((), ("--dry-run",))]
    assert found[0] == found[1]
    assert found[0][0] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_sweep_says_of_each_export_what_it_would_do(
    demo: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo.fresh(tmp_path / "t5-demo-fp32", "fp32", cache="both")
    arguments = ["--variant", "t5-demo", "--precision", "fp32", "fp16", "--out", str(tmp_path), "--dry-run"]
    code, out, _ = export(capsys, *arguments, "--json")
    plans = json.loads(out)["exports"]
    assert code == 1
    assert "was made from other inputs" in plans["t5-demo-fp32"]["state"]
    assert plans["t5-demo-fp16"]["out"] == str(tmp_path / "t5-demo-fp16")
    code, out, _ = export(capsys, *arguments, "--force")
    assert code == 0
    assert "in place of t5-demo in fp32" in out
    assert [path.name for path in tmp_path.iterdir()] == ["t5-demo-fp32"]


def test_a_build_says_which_engines_it_would_build(
    demo: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = demo.fresh(tmp_path / "demo", "fp32")
    before = sorted(tmp_path.rglob("*"))
    assert main(["build", str(folder), *CAPABILITY, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "engines/tensorrt-rtx/8.6/encoder.engine  would be built",
        "engines/tensorrt-rtx/8.6/decoder.engine  would be built",
    ]
    assert sorted(tmp_path.rglob("*")) == before
    (folder / "encoder.onnx").write_bytes(b"")
    assert main(["build", str(folder), *CAPABILITY, "--dry-run"]) == 2


def test_the_first_line_comes_before_torch(tmp_path: Path) -> None:
    """Timed with room for a busy machine: torch and transformers alone take longer where nothing else runs."""
    command = [sys.executable, "-m", "t5edge.cli", "export", "--variant", "t5-demo", "--out", str(tmp_path / "out")]
    begin = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=os.environ)
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == "t5-demo in fp32: loading torch and transformers\n"
        assert time.monotonic() - begin < 5
    finally:
        process.kill()
        process.communicate()

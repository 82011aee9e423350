"""The proof for GPUs where there is none: every step is walked and says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from t5edge.runtime.gpu import find_gpus

ROOT = Path(__file__).parents[3]


def proof(out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(bool(find_gpus().gpus), reason="there is a GPU")
def test_without_a_gpu_every_step_is_not_run(tmp_path: Path) -> None:
    done = proof(tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {step["kind"] for step in (row["step"] for row in found.values())} == {
        "machine",
        "export",
        "build",
        "logits",
        "verify",
        "time",
        "torch",
    }
    assert {row["state"] for row in found.values()} == {"not run"}
    assert all(row["reason"].startswith("no GPU: ") for row in found.values())
    assert f"0 done, 0 failed, {len(found)} not run" in (tmp_path / "gpu.md").read_text()


def test_what_was_not_run_is_tried_again_and_what_failed_is_not(tmp_path: Path) -> None:
    steps = tmp_path / "rehearsal" / "steps"
    steps.mkdir(parents=True)
    for name, state in (("machine", "not run"), ("export.t5-demo.fp16", "failed")):
        (steps / f"{name}.json").write_text(json.dumps({"state": state, "reason": "as it was"}))
    assert proof(tmp_path, "--rehearse", "--minutes", "0").returncode == 1
    found = json.loads((steps.parent / "gpu.json").read_text())
    assert found["machine"]["reason"] == "the time was up"
    assert (found["export.t5-demo.fp16"]["state"], found["export.t5-demo.fp16"]["reason"]) == ("failed", "as it was")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_on_a_cpu_every_step_does_its_work_and_a_second_run_repeats_none(tmp_path: Path) -> None:
    done = proof(tmp_path, "--rehearse", "--minutes", "25")
    assert done.returncode == 0, done.stdout
    steps = tmp_path / "rehearsal" / "steps"
    found = json.loads((steps.parent / "gpu.json").read_text())
    assert {row["state"] for row in found.values()} == {"done"}
    stamps = {path: path.stat().st_mtime_ns for path in steps.iterdir()}
    assert proof(tmp_path, "--rehearse").returncode == 0
    assert {path: path.stat().st_mtime_ns for path in steps.iterdir()} == stamps

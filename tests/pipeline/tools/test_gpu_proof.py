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


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_on_a_cpu_every_step_does_its_work_and_a_second_run_repeats_none(tmp_path: Path) -> None:
    done = proof(tmp_path, "--rehearse", "--minutes", "25")
    assert done.returncode == 0, done.stdout
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {row["state"] for row in found.values()} == {"done"}
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "steps").iterdir()}
    assert proof(tmp_path, "--rehearse").returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "steps").iterdir()} == stamps

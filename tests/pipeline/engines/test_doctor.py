from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from typing import Any

import pytest

from support.gpus import SetGpus
from t5edge.engines import doctor
from t5edge.errors import UserError
from t5edge.runtime.backend import BACKENDS
from t5edge.runtime.tensorrt.flavor import TensorRT

FIELDS = {"target", "installed", "version", "can_build", "can_run", "reason"}


def rows() -> dict[str, dict[str, Any]]:
    return {row["target"]: row for row in doctor.targets_report()}


def test_every_target_has_a_row(no_gpu: None) -> None:
    assert rows().keys() == BACKENDS.keys()
    for row in rows().values():
        assert row.keys() == FIELDS
        assert bool(row["reason"]) == (not (row["can_build"] and row["can_run"]))
        assert row["installed"] or not row["can_run"]


def test_onnxruntime_runs_here(no_gpu: None) -> None:
    row = rows()["onnxruntime"]
    assert (row["can_build"], row["can_run"], row["version"]) == (True, True, metadata.version("onnxruntime"))


def test_rtx_builds_without_a_gpu_and_does_not_run(no_gpu: None, rtx: TensorRT) -> None:
    row = rows()["tensorrt-rtx"]
    assert (row["installed"], row["version"], row["can_build"], row["can_run"]) == (True, rtx.version, True, False)
    assert row["reason"] == "no GPU: none in this test; builds for 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"
    assert doctor.engine_targets() == ()


def test_rtx_runs_with_a_gpu(set_gpus: SetGpus, rtx: TensorRT) -> None:
    set_gpus("8.9")
    assert rows()["tensorrt-rtx"]["can_run"]
    assert "tensorrt-rtx" in doctor.engine_targets()


def test_a_gpu_that_rtx_cannot_target_is_no_place_to_run(set_gpus: SetGpus, rtx: TensorRT) -> None:
    set_gpus("9.0")
    row = rows()["tensorrt-rtx"]
    assert row["can_run"] is False
    assert "cannot target compute capability 9.0 (Hopper" in row["reason"]


def test_a_missing_package_says_how_to_install_it(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for row in rows().values():
        assert (row["installed"], row["can_build"], row["can_run"]) == (False, False, False)
        assert "pip install" in row["reason"]


def test_a_package_that_does_not_load_says_why(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(target: str) -> TensorRT:
        raise UserError("tensorrt is installed and does not load (libfoo)")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(doctor, "load_tensorrt", broken)
    assert "does not load" in rows()["tensorrt"]["reason"]


@pytest.mark.parametrize(
    ("package", "can_build", "can_run"), [("polygraphy", False, True), ("cuda-bindings", True, False)]
)
def test_what_only_building_or_running_needs_is_missed_there(
    package: str, can_build: bool, can_run: bool, set_gpus: SetGpus, rtx: TensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_gpus("8.9")
    installed = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda *names: None if package in names else installed(*names))
    row = rows()["tensorrt-rtx"]
    assert (row["can_build"], row["can_run"]) == (can_build, can_run)
    assert f"{package} is not installed" in row["reason"]


def test_looking_for_engine_targets_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from t5edge.engines.doctor import engine_targets\n"
        "engine_targets()\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'onnx_ir'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

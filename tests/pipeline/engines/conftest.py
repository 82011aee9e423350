"""Bundles shared by the tests of the targets, and a machine without a GPU whatever the machine has."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.gpus import FINDERS, NO_GPU, SetGpus
from t5edge.runtime.gpu import Gpu, GpuReport
from t5edge.runtime.tensorrt.flavor import TensorRT, collector_paused, load_tensorrt


@pytest.fixture(scope="session")
def rtx() -> TensorRT:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed: pip install tensorrt-rtx-cu13")
    return load_tensorrt("tensorrt-rtx")


@pytest.fixture
def no_collector() -> Iterator[None]:
    """For tests that drive the builder themselves: see ``collector_paused``."""
    with collector_paused():
        yield


@pytest.fixture
def set_gpus(monkeypatch: pytest.MonkeyPatch) -> SetGpus:
    """Pretend that the machine has GPUs of these compute capabilities; none without arguments."""

    def use(*capabilities: str) -> None:
        gpus = tuple(Gpu(f"Test GPU {capability}", capability, "13.0") for capability in capabilities)
        report = GpuReport(gpus) if gpus else NO_GPU
        for finder in FINDERS:
            monkeypatch.setattr(finder, lambda: report)

    return use


@pytest.fixture
def no_gpu(set_gpus: SetGpus) -> None:
    set_gpus()


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing and runtime caches go to the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))

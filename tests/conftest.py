"""What every test shares: one thread per process (two cores, two workers), and pretended GPUs."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import importlib.util
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.gpus import SetGpus
    from t5edge.runtime.tensorrt.flavor import TensorRT

sys.dont_write_bytecode = False  # compiled modules are kept, or each process takes seconds to begin

TESTS = Path(__file__).parent
LONGEST = (
    "pipeline/calibration",
    "pipeline/test_cli.py",
    "pipeline/tools/sweep",
    "pipeline/test_export.py",
    "pipeline/parity",
    "pipeline/engines",
    "install",
    "pipeline",
    "unit",
)
"""The order in which files are handed out: what takes long comes first, so no worker is left with it at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first; pytest-xdist hands out whole files in this order."""

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(TESTS).as_posix()
        return next((index for index, begin in enumerate(LONGEST) if name.startswith(begin)), 0)

    items.sort(key=place)


@pytest.fixture(scope="session")
def rtx() -> TensorRT:
    """TensorRT-RTX, which builds engines without a GPU."""
    from t5edge.runtime.tensorrt.flavor import load_tensorrt

    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed: pip install tensorrt-rtx-cu13")
    return load_tensorrt("tensorrt-rtx")


@pytest.fixture
def no_collector() -> Iterator[None]:
    """For tests that drive the builder themselves: see ``collector_paused``."""
    from t5edge.runtime.tensorrt.flavor import collector_paused

    with collector_paused():
        yield


@pytest.fixture
def set_gpus(monkeypatch: pytest.MonkeyPatch) -> SetGpus:
    """Pretend that the machine has GPUs of these compute capabilities; none without arguments."""
    from support.gpus import FINDERS, NO_GPU
    from t5edge.runtime.gpu import Gpu, GpuReport

    def use(*capabilities: str) -> None:
        gpus = tuple(Gpu(f"Test GPU {capability}", capability, "13.0") for capability in capabilities)
        report = GpuReport(gpus) if gpus else NO_GPU
        for finder in FINDERS:
            monkeypatch.setattr(finder, lambda: report)

    return use


@pytest.fixture
def no_gpu(set_gpus: SetGpus) -> None:
    set_gpus()


NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def caches(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder, not there yet, for the user's caches, but for pip's where packages are installed.

    Nothing is read from or left in those of whoever runs the tests. It is not in ``tmp_path``, which most tests do
    without: a folder a test takes its time.
    """
    folder = tmp_path_factory.getbasetemp() / "caches" / str(next(NUMBERS))
    if TESTS / "install" not in request.path.parents:
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
        monkeypatch.setenv("T5EDGE_CACHE", str(folder))
    return folder

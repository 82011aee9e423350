from __future__ import annotations

import ctypes
from typing import Any

import pytest

from t5edge.runtime import gpu


class FakeDriver:
    """Just enough of libcuda for one GPU of compute capability 8.6."""

    def __init__(self, status: int = 0, count: int = 1) -> None:
        self.status, self.count = status, count

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, out: Any) -> int:
        out._obj.value = self.count
        return 0

    def cuDeviceGet(self, out: Any, index: int) -> int:
        return 0

    def cuDeviceGetName(self, buffer: Any, size: int, device: Any) -> int:
        buffer.value = b"NVIDIA Test 3090"
        return 0

    def cuDeviceGetAttribute(self, out: Any, attribute: int, device: Any) -> int:
        out._obj.value = {gpu.MAJOR: 8, gpu.MINOR: 6}[attribute]
        return 0

    def cuDriverGetVersion(self, out: Any) -> int:
        out._obj.value = 13020
        return 0


def test_one_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver())
    report = gpu.find_gpus()
    assert report.gpus == (gpu.Gpu("NVIDIA Test 3090", "8.6", "13.2"),)
    assert report.reason == ""


def test_a_machine_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert gpu.find_gpus() == gpu.GpuReport((), "no GPU: the NVIDIA driver (libcuda.so.1) is not installed")


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (FakeDriver(status=100), "no GPU: the NVIDIA driver reports error 100 (cuInit)"),
        (FakeDriver(count=0), "no GPU: the NVIDIA driver lists no device"),
    ],
)
def test_a_driver_without_a_gpu_says_why(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver, reason: str) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert gpu.find_gpus() == gpu.GpuReport((), reason)

"""The GPUs of this machine, asked of the CUDA driver itself: no torch, no CUDA toolkit, nothing to install."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

from t5edge.errors import UserError

MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h."""


@dataclass(frozen=True)
class Gpu:
    """One device. ``compute_capability`` is written ``8.6``; ``driver`` is the newest CUDA version it serves."""

    name: str
    compute_capability: str
    driver: str


@dataclass(frozen=True)
class GpuReport:
    """What was found; ``reason`` says why nothing was, and is empty otherwise."""

    gpus: tuple[Gpu, ...]
    reason: str = ""


def find_gpus() -> GpuReport:
    """Ask the driver; never raises."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return GpuReport((), f"no GPU: the NVIDIA driver ({name}) is not installed")
    status = driver.cuInit(0)
    if status != 0:
        return GpuReport((), f"no GPU: the NVIDIA driver reports error {status} (cuInit)")
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    if count.value == 0:
        return GpuReport((), "no GPU: the NVIDIA driver lists no device")
    return GpuReport(tuple(_describe(driver, index) for index in range(count.value)))


def require_gpu(target: str) -> GpuReport:
    """What ``find_gpus`` finds.

    Raises:
        UserError: nothing; with the reason and the target that works.
    """
    found = find_gpus()
    if not found.gpus:
        raise UserError(
            f"{found.reason}; target {target} runs on an NVIDIA GPU. --target onnxruntime runs this bundle on the CPU."
        )
    return found


def _describe(driver: Any, index: int) -> Gpu:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    major, minor, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device)
    driver.cuDriverGetVersion(ctypes.byref(version))
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Gpu(name.value.decode(), f"{major.value}.{minor.value}", cuda)

"""Devices: memory bandwidth and peak arithmetic, from their makers' tables, or measured on this machine.

Peaks are dense: figures that a maker states for sparse matrices are halved. 16-bit rates are those with float32
accumulation, which TensorRT uses; float32 rates leave TF32 out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from t5edge.errors import UserError

THIS_CPU = "this-cpu"
BANDWIDTH_BYTES = 1 << 28
"""Bytes read for one measurement: far beyond any cache."""
MATRIX = 1536
REPEATS = 5
"""Side of the matrices multiplied for the FLOP/s, and how often everything is measured; the fastest counts."""


@dataclass(frozen=True)
class DeviceSpec:
    """One device as its maker, or a measurement, describes it.

    Attributes:
        bandwidth: GB/s (10^9 bytes) read from memory.
        tflops: compute dtype -> 10^12 multiplications and additions per second; ``int8`` where it is faster.
        source: where the figures are from.
    """

    name: str
    bandwidth: float
    tflops: Mapping[str, float]
    source: str

    def rate(self, dtype: str) -> float:
        """TFLOP/s in ``dtype`` (ONNX's name, or ``int8``); the widest that is known where it is not listed."""
        return self.tflops.get(dtype) or self.tflops.get("float16" if dtype == "bfloat16" else "float", 0.0)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "tflops": dict(self.tflops)}


DEVICES = (
    DeviceSpec(
        "jetson-orin-nano",
        102.0,
        {"float": 2.1, "float16": 16.7, "int8": 33.5},
        "nominal, taken second-hand, not checked with NVIDIA: "
        "Jetson Orin Nano Super Developer Kit datasheet: 67 sparse INT8 TOPS, 1024 cores at 1.02 GHz, 102 GB/s",
    ),
    DeviceSpec(
        "jetson-agx-orin",
        204.8,
        {"float": 5.3, "float16": 42.5, "int8": 85.0},
        "nominal, taken second-hand, not checked with NVIDIA: "
        "Jetson AGX Orin Series Technical Brief v1.2 (64 GB): GPU 170 sparse INT8 TOPS, 5.3 FP32 TFLOPS",
    ),
    DeviceSpec(
        "rtx-4060",
        272.0,
        {"float": 15.1, "float16": 30.2, "int8": 121.0},
        "nominal, taken second-hand, not checked with NVIDIA: "
        "GeForce RTX 4060: 3072 cores at 2.46 GHz, 242 sparse INT8 TOPS, 17 Gbit/s on 128 bits",
    ),
    DeviceSpec(
        "l4",
        300.0,
        {"float": 30.3, "float16": 121.0, "int8": 242.5},
        "nominal, taken second-hand, not checked with NVIDIA: "
        "L4 Tensor Core GPU datasheet: 242 sparse FP16 TFLOPS, 485 sparse INT8 TOPS, 300 GB/s",
    ),
)


def find_device(name: str) -> DeviceSpec:
    """The device called ``name``; ``this-cpu`` is measured now.

    Raises:
        UserError: there is no such device.
    """
    if name == THIS_CPU:
        return measure_this_cpu()
    for device in DEVICES:
        if device.name == name:
            return device
    known = ", ".join([*(device.name for device in DEVICES), THIS_CPU])
    raise UserError(f"device '{name}' is unknown; choose one of {known}, or give --bandwidth and --tflops.")


def custom_device(bandwidth: float, tflops: float) -> DeviceSpec:
    """A device given by two figures, GB/s and TFLOP/s in whatever dtype is planned.

    Raises:
        UserError: a figure is not positive.
    """
    if not (bandwidth > 0 and tflops > 0):
        raise UserError(f"--bandwidth {bandwidth:g} and --tflops {tflops:g}: both must be given, and be positive.")
    return DeviceSpec(
        "custom", bandwidth, dict.fromkeys(("float", "float16", "bfloat16", "int8"), tflops), "command line"
    )


def measure_this_cpu() -> DeviceSpec:
    """Read bandwidth and float32 FLOP/s of this machine now, with as many threads as it has cores; about a second.

    The processor's int8 rate is not measured: it is planned at the float32 rate.
    """
    threads = available_cores()
    source = f"measured: {threads} threads, numpy's BLAS"
    return DeviceSpec(THIS_CPU, _read_bandwidth(threads), {"float": _matmul_rate()}, source)


def available_cores() -> int:
    """Logical processors that this process may use; macOS does not say, so all of them there."""
    process = psutil.Process()
    return len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else os.cpu_count() or 1


def measure_this_cpu_apart() -> DeviceSpec:
    """``measure_this_cpu`` in a process of its own, so that its arrays do not count as this process's memory."""
    script = "import json, t5edge.tools.planning.devices as d; print(json.dumps(d.measure_this_cpu().to_dict()))"
    here = Path(__file__).resolve().parents[1]  # where the package is found without being installed
    answer = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=here)
    return DeviceSpec(**json.loads(answer.stdout))


def _read_bandwidth(threads: int) -> float:
    """GB/s of dot products over an array that no cache holds, one slice for each thread."""
    from concurrent.futures import ThreadPoolExecutor

    parts = np.array_split(np.ones(BANDWIDTH_BYTES // 4, np.float32), threads)
    with ThreadPoolExecutor(threads) as pool:
        return BANDWIDTH_BYTES / _fastest(lambda: list(pool.map(lambda part: np.dot(part, part), parts))) / 1e9


def _matmul_rate() -> float:
    """TFLOP/s of a float32 product of square matrices."""
    matrix = np.full((MATRIX, MATRIX), 0.5, np.float32)
    return 2 * MATRIX**3 / _fastest(lambda: matrix @ matrix) / 1e12


def _fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of ``REPEATS`` runs after one for warming up."""
    run()
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)

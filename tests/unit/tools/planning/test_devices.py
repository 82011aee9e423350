from __future__ import annotations

import re

import pytest

from t5edge.errors import UserError
from t5edge.runtime.tensorrt.device import Device
from t5edge.tools.planning import devices
from t5edge.tools.planning.devices import DEVICES, custom_device, find_device


def test_rows_grow_with_narrower_types() -> None:
    assert len({device.name for device in DEVICES}) == len(DEVICES) == 4
    for device in DEVICES:
        assert device.rate("float") < device.rate("float16") == device.rate("bfloat16") < device.rate("int8")
        assert 10 < device.bandwidth < 4000


def stated(device: Device, pattern: str) -> list[float]:
    """Numbers of a device's source by what stands around them."""
    found = re.search(pattern, device.source)
    return [float(number) for number in found.groups()] if found else []


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_figures_follow_the_source_that_a_row_names(device: Device) -> None:
    """Half of what is stated for sparse matrices; two operations per core and cycle; bits of a bus over eight."""
    (int8,) = stated(device, r"(\d+) sparse INT8 TOPS")
    assert device.rate("int8") == pytest.approx(int8 / 2, rel=0.01)
    if half := stated(device, r"(\d+) sparse FP16 TFLOPS"):
        assert device.rate("float16") == pytest.approx(half[0] / 2, rel=0.01)
    cores = stated(device, r"(\d+) cores at ([\d.]+) GHz")
    single = stated(device, r"([\d.]+) FP32 TFLOPS") or ([2 * cores[0] * cores[1] / 1000] if cores else [])
    assert not single or device.rate("float") == pytest.approx(single[0], rel=0.01)
    bus = stated(device, r"(\d+) Gbit/s on (\d+) bits")
    bandwidth = stated(device, r"(\d+) GB/s") or ([bus[0] * bus[1] / 8] if bus else [])
    assert not bandwidth or device.bandwidth == pytest.approx(bandwidth[0], rel=0.01)
    assert len([*single, *bandwidth]) >= 1
    assert "not checked with NVIDIA" in device.source


def test_an_unknown_device_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'orin' is unknown; choose one of jetson-orin-nano, .*this-cpu, or give"):
        find_device("orin")


@pytest.mark.parametrize(("bandwidth", "tflops"), [(0.0, 1.0), (100.0, -1.0), (float("nan"), 1.0)])
def test_a_custom_device_needs_both_figures(bandwidth: float, tflops: float) -> None:
    with pytest.raises(UserError, match="both must be given, and be positive"):
        custom_device(bandwidth, tflops)


def test_a_custom_device_has_one_rate() -> None:
    assert {custom_device(100, 5).rate(dtype) for dtype in ("float", "float16", "bfloat16", "int8")} == {5}


def test_this_cpu_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "BANDWIDTH_BYTES", 1 << 22)
    monkeypatch.setattr(devices, "MATRIX", 64)
    found = find_device("this-cpu")
    assert found.bandwidth > 0.1
    assert found.rate("float") > 1e-5
    assert found.rate("float16") == found.rate("int8") == found.rate("float")
    assert found.source.startswith("measured: ")

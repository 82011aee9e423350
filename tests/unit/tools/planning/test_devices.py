from __future__ import annotations

import pytest

from t5edge.errors import UserError
from t5edge.tools.planning import devices
from t5edge.tools.planning.devices import DEVICES, custom_device, find_device


def test_rows_name_their_source_and_grow_with_narrower_types() -> None:
    assert len({device.name for device in DEVICES}) == len(DEVICES) == 4
    for device in DEVICES:
        assert "NVIDIA" in device.source
        assert device.rate("float") < device.rate("float16") == device.rate("bfloat16") < device.rate("int8")
        assert 10 < device.bandwidth < 4000


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

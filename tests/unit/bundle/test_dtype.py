from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from t5edge.bundle.dtype import COMPUTE_DTYPES, DTYPES, NARROW


@pytest.mark.parametrize("name", DTYPES)
def test_widths_are_those_of_onnx(name: str) -> None:
    row, dtype = DTYPES[name], ir.DataType[name.upper()]
    assert row.bits == dtype.bitwidth
    assert row.array.itemsize == row.bytes == max(1, row.bits // 8)
    assert (row.rounding is not None) == dtype.is_floating_point()


def test_roundings_are_half_a_unit_in_the_last_place() -> None:
    assert DTYPES["float16"].rounding == np.finfo(np.float16).eps / 2
    assert DTYPES["float"].rounding == np.finfo(np.float32).eps / 2
    assert COMPUTE_DTYPES == ("float", "float16", "bfloat16")
    assert NARROW == ("float16", "bfloat16")


def test_bfloat16_bits_are_widened_exactly() -> None:
    values = np.array([1.0, -2.5, 3.0e38, 0.0], np.float32)
    held = (values.view(np.uint32) >> 16).astype(np.uint16)
    widened = DTYPES["bfloat16"].widened(held)
    assert widened.dtype == np.float32
    np.testing.assert_allclose(widened, values, rtol=2.0**-7)
    assert DTYPES["float16"].widened(held) is held

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from t5edge.kernels.values import as_int64, constant_value, scalar
from t5edge.kernels.weights import planned_value, stack_of


def test_a_scalar_is_read_whatever_its_rank() -> None:
    for shape in ((), (1,), (1, 1)):
        assert scalar(constant_value(np.full(shape, 2.5, np.float32), "x")) == 2.5


def test_what_is_no_scalar_constant_is_none() -> None:
    assert scalar(None) is None
    assert scalar(constant_value(np.zeros(2), "two")) is None
    assert scalar(ir.Value(name="computed")) is None
    assert scalar(planned_value(stack_of("w", (1,)), ir.DataType.FLOAT, "w")) is None


def test_shapes_are_int64() -> None:
    array = as_int64(0, -1, 24)
    assert (array.dtype, array.tolist()) == (np.int64, [0, -1, 24])
    value = constant_value(array, "shape")
    assert (value.dtype, list(value.shape or ())) == (ir.DataType.INT64, [3])

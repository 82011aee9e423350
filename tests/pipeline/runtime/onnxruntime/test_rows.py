from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from support.taken_rows import taken_rows
from t5edge.bundle.dtype import DTYPES
from t5edge.errors import UserError
from t5edge.runtime.onnxruntime.rows import FILES, Rows
from t5edge.runtime.onnxruntime.values import to_array, to_value, widened


@pytest.mark.parametrize("dtype", FILES)
def test_rows_and_positions_are_taken_bit_by_bit(dtype: str) -> None:
    assert FILES[dtype].read_bytes() == ir.to_proto(taken_rows(dtype)).SerializeToString()
    cache = np.random.default_rng(0).integers(0, 2**15, (3, 2, 5, 4)).astype(np.uint16)
    held = cache if dtype == "bfloat16" else cache.astype(DTYPES[dtype].array)
    rows = Rows(dtype, lambda path: onnxruntime.InferenceSession(str(path)), "cpu")
    taken = rows.take(to_value(held, dtype), np.array([2, 0, 0, 1]), 4)
    assert np.array_equal(to_array(taken), held[[2, 0, 0, 1], :, :4])


def test_bfloat16_is_read_and_written_as_its_bits() -> None:
    numbers = np.array([[1.0, -2.5, 3e38], [0.0, 1e-30, 7.0]], ml_dtypes.bfloat16)
    value = to_value(numbers.view(np.uint16), "bfloat16")
    assert value.data_type() == "tensor(bfloat16)"
    assert np.array_equal(to_array(value), numbers.view(np.uint16))
    assert np.array_equal(widened(value), numbers.astype(np.float32))
    assert to_array(to_value(np.zeros((2, 0, 3), np.uint16), "bfloat16")).shape == (2, 0, 3)


def test_what_stays_on_a_gpu_is_not_read_as_host_memory() -> None:
    class OnGpu:
        def data_type(self) -> str:
            return "tensor(bfloat16)"

        def device_name(self) -> str:
            return "cuda"

    with pytest.raises(UserError, match="bfloat16 tensors of a GPU"):
        to_array(OnGpu())

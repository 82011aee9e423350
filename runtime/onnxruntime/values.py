"""ONNX Runtime's tensors and numpy's arrays: bfloat16, which numpy does not have, is held as the bits in uint16."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from t5edge.bundle.dtype import DTYPES
from t5edge.errors import UserError

BFLOAT16 = 16
"""onnx.TensorProto.BFLOAT16"""


def to_value(array: np.ndarray, dtype: str | None = None) -> Any:
    """``array`` as an ``OrtValue`` in host memory; ``dtype`` "bfloat16" says that its uint16 are such bits."""
    from onnxruntime import OrtValue

    contiguous = np.ascontiguousarray(array)
    if dtype == "bfloat16":
        return OrtValue.ortvalue_from_numpy_with_onnx_type(contiguous, BFLOAT16)
    return OrtValue.ortvalue_from_numpy(contiguous)


def to_array(value: Any) -> np.ndarray:
    """An ``OrtValue`` as numpy, of whatever device; bfloat16, from host memory alone, as the bits in uint16.

    Raises:
        UserError: bfloat16 on another device.
    """
    if value.data_type() != "tensor(bfloat16)":
        array: np.ndarray = value.numpy()
        return array
    if value.device_name().lower() != "cpu":
        raise UserError("bfloat16 tensors of a GPU cannot be read by ONNX Runtime's Python package; use fp16 or fp32.")
    shape, held = tuple(value.shape()), DTYPES["bfloat16"].array
    size = int(np.prod(shape)) * held.itemsize
    return np.frombuffer(ctypes.string_at(value.data_ptr(), size), held).reshape(shape)


def widened(value: Any) -> np.ndarray:
    """``to_array``, with bfloat16 as float32 of the same values."""
    array = to_array(value)
    return DTYPES["bfloat16"].widened(array) if value.data_type() == "tensor(bfloat16)" else array

"""Constants of a graph: make them, read them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from t5edge.kernels.weights import expression_of


def scalar(value: ir.Value | None) -> float | None:
    """The number of a scalar constant, or None."""
    array = ir.convenience.get_const_tensor(value) if value is not None and expression_of(value) is None else None
    return float(array.numpy().reshape(-1)[0]) if array is not None and array.size == 1 else None


def as_int64(*values: int) -> np.ndarray:
    """A one-dimensional int64 constant."""
    return np.array(values, dtype=np.int64)


def constant_value(array: np.ndarray, name: str) -> ir.Value:
    """A small initializer with data of its own (reshape targets, masks, split sizes)."""
    return ir.val(name, const_value=ir.tensor(array, name=name))

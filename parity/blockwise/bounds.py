"""How far one piece of a bundle may lie from PyTorch: the precision's own rule, applied where the error is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from t5edge.bundle.precision import Precision
from t5edge.parity.limits import FLOAT32_ERROR, ROUNDING, ceiling
from t5edge.parity.measures import relative_error

if TYPE_CHECKING:
    import torch

DEFAULT_RATIO = 2.0
"""Rows that only bound the logits (integer weights): so many times the error of plain rounding."""


def error_bound(row: Precision, own: float) -> float:
    """Bound on a relative error where PyTorch, rounded as the row says, makes the relative error ``own``.

    ``own`` counts as at least a quarter of a rounding (a lucky tensor; in float32 what two correct implementations may
    differ by), and at 16 bits as at most what is believed of PyTorch (it may have overflowed, or be NaN).
    """
    if row.max_relative_error is not None:
        return row.max_relative_error
    most = ceiling(row.compute) if row.compute in ROUNDING and not row.quantized else float("inf")
    least = ROUNDING[row.compute] / 4 if row.compute in ROUNDING else FLOAT32_ERROR / DEFAULT_RATIO
    believed = most if own != own else min(max(own, least), most)
    return (row.max_error_ratio or DEFAULT_RATIO) * believed


def as_array(tensor: Any) -> np.ndarray:
    """A torch tensor of any float dtype as float32."""
    array: np.ndarray = tensor.float().contiguous().numpy()
    return array


def error_of(found: np.ndarray, exact: Any) -> float:
    """Relative L2 error against a torch tensor of the same shape."""
    return relative_error(found, as_array(exact))


def torch_dtype(row: Precision) -> torch.dtype:
    """The row's compute dtype."""
    import torch

    found: torch.dtype = getattr(torch, "float32" if row.compute == "float" else row.compute)
    return found

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
"""Precisions that only bound the logits (integer weights): so many times the error of plain rounding."""


def error_bound(precision: Precision, own: float) -> float:
    """Bound on a relative error where PyTorch, rounded as the precision says, makes the relative error ``own``.

    ``own`` counts as at least a quarter of a rounding (a lucky tensor; in float32 what two correct implementations may
    differ by), and at 16 bits as at most what is believed of PyTorch (it may have overflowed, or be NaN).
    """
    if precision.max_relative_error is not None:
        return precision.max_relative_error
    most = ceiling(precision.compute) if precision.compute in ROUNDING and not precision.quantized else float("inf")
    least = ROUNDING[precision.compute] / 4 if precision.compute in ROUNDING else FLOAT32_ERROR / DEFAULT_RATIO
    believed = most if own != own else min(max(own, least), most)
    return (precision.max_error_ratio or DEFAULT_RATIO) * believed


def as_array(tensor: Any) -> np.ndarray:
    """A torch tensor of any float dtype as float32."""
    array: np.ndarray = tensor.float().contiguous().numpy()
    return array


def error_of(found: np.ndarray, exact: Any, text: np.ndarray | None = None) -> float:
    """Relative L2 error against a torch tensor of the same shape.

    ``text`` bool [batch, length]: the positions that count, of [batch, length, ...]; None for all. Padding holds
    numbers that no answer depends on and that calibration never saw.
    """
    wanted = as_array(exact)
    return relative_error(found, wanted) if text is None else relative_error(found[text], wanted[text])


def torch_dtype(precision: Precision) -> torch.dtype:
    """The compute dtype."""
    import torch

    found: torch.dtype = getattr(torch, "float32" if precision.compute == "float" else precision.compute)
    return found

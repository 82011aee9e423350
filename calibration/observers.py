"""Observers: one symmetric int8 scale for a tensor, from a sample of its values.

    minmax       the largest magnitude
    percentile   the magnitude that 99.99 % of the values stay below      onnxruntime's calibrator
    entropy      least KL divergence between histogram and rounded one    onnxruntime's calibrator
    mse          least squared error over thirty clipping ranges          ours: onnxruntime has none

onnxruntime's calibrators are used for what they compute, not for running the model: they would keep every activation
of every batch, and count the padding.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LARGEST = 127.0
PERCENTILE = 99.99
BINS = {"percentile": 2048, "entropy": 512}
"""Entropy: onnxruntime's default of 128 leaves its search a single candidate, the largest magnitude."""
MSE_STEPS = 30
MSE_LOWEST = 0.2
"""The MSE search clips at this share of the largest magnitude at most."""

Observer = Callable[["torch.Tensor", float], float]
"""(values float32, the largest magnitude ever seen) -> the magnitude that becomes 127."""


def minmax(values: torch.Tensor, largest: float) -> float:
    """Nothing seen is clipped."""
    return largest


def mse(values: torch.Tensor, largest: float) -> float:
    """The clipping magnitude with the least mean squared error over ``values``."""
    import torch

    best, range_ = float("inf"), largest
    for step in range(MSE_STEPS):
        candidate = largest * (1 - (1 - MSE_LOWEST) * step / MSE_STEPS)
        error = float(torch.mean((round_values(values, candidate / LARGEST) - values) ** 2))
        if error < best:
            best, range_ = error, candidate
    return range_


def _onnxruntime(method: str) -> Observer:
    def observe(values: torch.Tensor, largest: float) -> float:
        from onnxruntime.quantization.calibrate import HistogramCollector

        collector = HistogramCollector(method, True, BINS[method], 128, PERCENTILE, "same")
        with contextlib.redirect_stdout(io.StringIO()):  # it prints at every call
            collector.collect({"x": values.reshape(-1).numpy()})
            found = collector.compute_collection_result()["x"]
        return min(largest, max(abs(float(bound)) for bound in found[:2]))

    return observe


OBSERVERS: dict[str, Observer] = {
    "minmax": minmax,
    "percentile": _onnxruntime("percentile"),
    "entropy": _onnxruntime("entropy"),
    "mse": mse,
}
DEFAULT = "minmax"
"""Why: docs/adr/0009."""


def round_values(values: torch.Tensor, scale: float) -> torch.Tensor:
    """``values`` after QuantizeLinear and DequantizeLinear with ``scale``, zero point 0: float32, same shape."""
    return (values / scale).round_().clamp_(-LARGEST - 1, LARGEST).mul_(scale)

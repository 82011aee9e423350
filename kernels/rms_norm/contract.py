"""RMS norm (T5: no mean, no bias).

    x : [..., d_model]   weight : [d_model]   out : [..., d_model]
    out = weight * x / sqrt(mean(x^2) + epsilon), statistics in float32

Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization"; transformers ``T5LayerNorm``; ONNX
``RMSNormalization`` (opset 23).
"""

from __future__ import annotations

import numpy as np


def rms_norm(x: np.ndarray, weight: np.ndarray, epsilon: float = 1e-6) -> np.ndarray:
    """Reference in float64. ``x`` [..., d_model], ``weight`` [d_model]; returns ``x``'s shape and dtype."""
    wide = x.astype(np.float64)
    normed = wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + epsilon)
    return (normed * weight.astype(np.float64)).astype(x.dtype)

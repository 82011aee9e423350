"""Plain FFN (T5 v1.0 and T5-Efficient: ReLU).

x : [batch, seq, d_model]   wi : [d_model, d_ff]   wo : [d_ff, d_model]   out : [batch, seq, d_model]
out = relu(x @ wi) @ wo
"""

from __future__ import annotations

import numpy as np

from t5edge.kernels.activations import ACTIVATIONS


def ffn(x: np.ndarray, wi: np.ndarray, wo: np.ndarray, activation: str = "relu") -> np.ndarray:
    """Reference in float64; returns ``x``'s shape and dtype."""
    return (ACTIVATIONS[activation](x.astype(np.float64) @ wi) @ wo).astype(x.dtype)

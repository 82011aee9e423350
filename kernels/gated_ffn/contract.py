"""Gated FFN (T5 v1.1 and later; UL2 with SiLU).

    x : [batch, seq, d_model]   wi_0, wi_1 : [d_model, d_ff]   wo : [d_ff, d_model]   out : [batch, seq, d_model]
    out = (act(x @ wi_0) * (x @ wi_1)) @ wo

Source: Shazeer 2020, "GLU Variants Improve Transformer"; GELU in its tanh form, Hendrycks and Gimpel 2016.
"""

from __future__ import annotations

import numpy as np

from t5edge.kernels.activations import ACTIVATIONS


def gated_ffn(x: np.ndarray, wi_0: np.ndarray, wi_1: np.ndarray, wo: np.ndarray, activation: str) -> np.ndarray:
    """Reference in float64; ``activation`` is one of ``t5edge.kernels.activations.ACTIVATIONS``."""
    wide = x.astype(np.float64)
    return ((ACTIVATIONS[activation](wide @ wi_0) * (wide @ wi_1)) @ wo).astype(x.dtype)

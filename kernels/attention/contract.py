"""Attention with one additive mask (T5: no 1/sqrt(d_kv); the scale is 1).

    q : [batch, heads, target, d_kv]   k, v : [batch, heads, total, d_kv]
    mask : broadcasts to [batch, heads, target, total]; position bias + padding + causality, same dtype as q
    out : [batch, target, heads * d_kv] after merging the heads

Source: Raffel et al. 2020 (T5), section 2.1; ONNX ``Attention`` (opset 23).
"""

from __future__ import annotations

import numpy as np


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Reference in float64: softmax(q k^T + mask) v, heads merged; returns [batch, target, heads * d_kv]."""
    scores = q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2) + mask.astype(np.float64)
    scores -= scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores)
    weights /= weights.sum(axis=-1, keepdims=True)
    context = (weights @ v.astype(np.float64)).swapaxes(1, 2)
    return context.reshape(*context.shape[:2], -1).astype(q.dtype)

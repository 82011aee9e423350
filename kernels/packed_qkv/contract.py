"""Packed self-attention projection: q, k, v in one MatMul; and the query of cross-attention on its own.

x : [batch, seq, d_model]   w_q, w_k, w_v : [d_model, heads * d_kv]   (T5: heads * d_kv is often not d_model)
out : q, k, v, each [batch, heads, seq, d_kv]
"""

from __future__ import annotations

import numpy as np


def split_heads(y: np.ndarray, heads: int) -> np.ndarray:
    """[batch, seq, heads * d_kv] -> [batch, heads, seq, d_kv]."""
    return y.reshape(*y.shape[:2], heads, -1).swapaxes(1, 2)


def packed_projection(x: np.ndarray, weights: tuple[np.ndarray, ...], heads: int) -> tuple[np.ndarray, ...]:
    """Reference: one [batch, heads, seq, d_kv] tensor for each weight [d_model, heads * d_kv]."""
    packed = x @ np.concatenate(weights, axis=1)
    return tuple(split_heads(part, heads) for part in np.split(packed, len(weights), axis=-1))

"""Cross keys and values: projected once per input by the encoder graph, for every decoder layer.

hidden : [batch, source, d_model]   w_k, w_v : [d_model, heads * d_kv]
out : key, value, each [batch, heads, source, d_kv]
"""

from __future__ import annotations

import numpy as np

from t5edge.kernels.packed_qkv.contract import packed_projection


def cross_kv(hidden: np.ndarray, w_k: np.ndarray, w_v: np.ndarray, heads: int) -> tuple[np.ndarray, np.ndarray]:
    """Reference; returns key and value, each [batch, heads, source, d_kv]."""
    key, value = packed_projection(hidden, (w_k, w_v), heads)
    return key, value

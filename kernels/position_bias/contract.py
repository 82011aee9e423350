"""T5's relative position bias, by clipped distance.

    weight : [num_buckets, heads]   out : [heads, query, key]
    out[h, i, j] = weight[bucket(j - i), h]

Buckets grow logarithmically with distance and saturate at ``max_distance``, so the bias depends on the distance clipped
to that range only: a table of ``2 * max_distance + 1`` entries (decoder: ``max_distance + 1``) holds all there is. The
bucket arithmetic, log() of a float, runs once at export in float32 exactly as in PyTorch; in the graph there are only
integers. Computed in float16 at run time it lands in the wrong bucket.

Source: Raffel et al. 2020 (T5), section 2.1; Shaw et al. 2018; transformers ``T5Attention``.
"""

from __future__ import annotations

import numpy as np


def position_bias(table: np.ndarray, queries: int, keys: int, past: int, max_distance: int, causal: bool) -> np.ndarray:
    """Reference: bias [heads, queries, keys] from a distance table [heads, distances].

    With ``causal`` the table's last column is the value of every later key.
    """
    distance = np.arange(keys)[None, :] - (np.arange(queries)[:, None] + past)
    index = np.clip(distance, -max_distance, 1 if causal else max_distance) + max_distance
    return table[:, index]

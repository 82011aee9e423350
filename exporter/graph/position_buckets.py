"""Which bucket of relative positions a distance falls into, by transformers' own arithmetic."""

from __future__ import annotations

from functools import lru_cache

from t5edge.exporter.graph.trace_cache import cached_numbers


@lru_cache
def bucket_table(num_buckets: int, max_distance: int, bidirectional: bool) -> tuple[int, ...]:
    """Bucket of each distance key - query, from ``-max_distance`` to ``max_distance`` (decoder: to 0).

    The arithmetic is transformers' own, in torch's float32.
    """
    facts = [num_buckets, max_distance, bidirectional]
    return cached_numbers("buckets", facts, lambda: _computed(num_buckets, max_distance, bidirectional))


def _computed(num_buckets: int, max_distance: int, bidirectional: bool) -> tuple[int, ...]:
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    last = max_distance if bidirectional else 0
    distances = torch.arange(-max_distance, last + 1)
    buckets = T5Attention._relative_position_bucket(
        distances, bidirectional=bidirectional, num_buckets=num_buckets, max_distance=max_distance
    )
    return tuple(int(bucket) for bucket in buckets)

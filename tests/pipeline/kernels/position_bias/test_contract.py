from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from t5edge.exporter.graph.position_buckets import bucket_table
from t5edge.kernels.position_bias.contract import position_bias


def torch_bias(config: T5Config, weight: np.ndarray, queries: int, keys: int, past: int) -> np.ndarray:
    attention = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    attention.relative_attention_bias.weight.data = torch.from_numpy(weight)
    with torch.no_grad():
        return attention.compute_bias(queries, keys, past_seen_tokens=past)[0].numpy()


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (32, 64), (16, 300), (64, 1000)])
@pytest.mark.parametrize("is_decoder", [False, True])
def test_equals_transformers_at_every_distance(num_buckets: int, max_distance: int, is_decoder: bool) -> None:
    config = T5Config(
        num_heads=3,
        relative_attention_num_buckets=num_buckets,
        relative_attention_max_distance=max_distance,
        is_decoder=is_decoder,
    )
    weight = np.random.default_rng(0).standard_normal((num_buckets, 3)).astype(np.float32)
    buckets = bucket_table(num_buckets, max_distance, bidirectional=not is_decoder)
    table = weight[list(buckets)].T
    keys = 2 * max_distance + 40
    queries, past = (keys, 0) if not is_decoder else (1, keys - 1)
    if is_decoder:
        table = np.concatenate([table, np.full((3, 1), -1e9, np.float32)], axis=1)
    ours = position_bias(table, queries, keys, past, max_distance, causal=is_decoder)
    np.testing.assert_array_equal(ours, torch_bias(config, weight, queries, keys, past))


@pytest.mark.parametrize("past", [0, 1, 7, 126, 127, 128, 129, 140, 1000])
def test_a_cached_step_sees_the_last_rows_of_the_whole_bias(past: int) -> None:
    table = np.random.default_rng(0).standard_normal((4, 130)).astype(np.float32)
    whole = position_bias(table, past + 3, past + 3, 0, 128, causal=True)
    step = position_bias(table, 3, past + 3, past, 128, causal=True)
    np.testing.assert_array_equal(step, whole[:, past:])


def test_later_keys_get_the_last_column() -> None:
    table = np.arange(130, dtype=np.float32)[None]
    bias = position_bias(table, 4, 4, 0, 128, causal=True)[0]
    assert (bias[np.triu_indices(4, 1)] == 129).all()
    assert (np.diag(bias) == 128).all()

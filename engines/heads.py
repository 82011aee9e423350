"""A model with one head: the batch takes the place of the heads, so that its attention is fused.

    before : q [batch, 1, target, d_kv]   k, v [batch, 1, total, d_kv]   mask [batch | 1, 1, target | 1, total]
    after  : q [1, batch, target, d_kv]   k, v [1, batch, total, d_kv]   mask [1, batch | 1, target | 1, total]

The builder drops a heads' axis of fixed size 1 and then no longer sees an attention; it keeps one whose size it does
not know. Sequences and heads are independent alike, so the two are equal. The parsed network is changed, not the file.
Found by building with TensorRT-RTX 1.7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from t5edge.runtime.tensorrt.flavor import TensorRT

SMALLEST_BATCH = 2
"""Largest batch that a profile must allow at least, or the batch's axis is dropped as the heads' was."""
BATCH_AND_HEADS = (1, 0, 2, 3)


def has_one_head(tensors: Sequence[Any]) -> bool:
    """Whether an attention's q, k, v and mask have queries [batch, 1, target, d_kv]."""
    return int(tensors[0].shape[1]) == 1


def swap_batch_and_heads(tool: TensorRT, network: Any, name: str, tensors: Sequence[Any]) -> list[Any]:
    """The tensors with the two axes swapped, by new layers called after the attention ``name``."""
    return [_swapped(tool, network, tensor, f"{name}/swapped_{index}") for index, tensor in enumerate(tensors)]


def _swapped(tool: TensorRT, network: Any, tensor: Any, name: str) -> Any:
    layer = network.add_shuffle(tensor)
    layer.first_transpose = tool.trt.Permutation(BATCH_AND_HEADS)
    layer.name = name
    return layer.get_output(0)

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from support.kernel_facts import FACTS
from support.onnx_graphs import Sketch, run
from t5edge.kernels.attention.contract import attention
from t5edge.kernels.attention.fusion import FUSION, rule
from t5edge.kernels.fusion import FusionError, apply_rules

HEADS, D_KV = FACTS.num_heads, FACTS.d_kv


def sketch_attention(sketch: Sketch, axis: int = -1, bias_shape: tuple[int | str, ...] = (1, 3, 5, 7)) -> ir.Value:
    q = sketch.input("q", "batch", HEADS, "target", D_KV)
    k = sketch.input("k", "batch", HEADS, "total", D_KV)
    v = sketch.input("v", "batch", HEADS, "total", D_KV)
    bias = sketch.input("bias", *bias_shape)
    scores = sketch.op("Add", sketch.op("MatMul", q, sketch.op("Transpose", k, perm=[0, 1, 3, 2])), bias)
    context = sketch.op("MatMul", sketch.op("Softmax", scores, axis=axis), v)
    sizes = [sketch.op("Shape", q, start=0, end=1), sketch.op("Shape", q, start=2, end=3), sketch.ints(-1)]
    merged = sketch.op("Concat", *sizes, axis=0)
    return sketch.op("Reshape", sketch.op("Transpose", context, perm=[0, 2, 1, 3]), merged)


def feeds(batch: int, target: int, total: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    shapes = {
        "q": (batch, HEADS, target, D_KV),
        "k": (batch, HEADS, total, D_KV),
        "v": (batch, HEADS, total, D_KV),
        "bias": (batch, HEADS, target, total),
    }
    arrays = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["bias"][:, :, :, total // 2 + 1 :] = np.finfo(np.float32).min  # padding
    return arrays


@pytest.mark.parametrize(("batch", "target", "total"), [(1, 1, 1), (3, 5, 7), (2, 1, 141), (1, 129, 129)])
def test_fuses_and_keeps_the_numbers(batch: int, target: int, total: int) -> None:
    sketch = Sketch()
    block = sketch.block(sketch_attention(sketch, bias_shape=("b", HEADS, "t", "s")))
    arrays = feeds(batch, target, total)
    (before,) = run(block, arrays, {})
    assert FUSION.run(block, FACTS).matched == 1
    assert block.operator_counts() == {"Attention": 1, "Constant": 1, "Reshape": 1, "Transpose": 1}
    (after,) = run(block, arrays, {})
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after, attention(arrays["q"], arrays["k"], arrays["v"], arrays["bias"]), atol=1e-6)


def test_softmax_over_the_queries_is_left_alone_and_says_why() -> None:
    sketch = Sketch()
    block = sketch.block(sketch_attention(sketch, axis=2))
    outcome = apply_rules(block, rule(FACTS.inner_dim))
    assert (outcome.matched, outcome.refusals) == (0, ["the softmax runs over axis 2, not over the keys"])


def test_a_mask_of_another_rank_is_left_alone_and_says_why() -> None:
    sketch = Sketch()
    block = sketch.block(sketch_attention(sketch, bias_shape=(5, 7)))
    outcome = apply_rules(block, rule(FACTS.inner_dim))
    assert (outcome.matched, outcome.refusals) == (0, ["the additive mask has rank 2, not 4"])


def test_a_missing_attention_fails_the_export() -> None:
    sketch = Sketch("decoder")
    block = sketch.block(sketch_attention(sketch))
    with pytest.raises(FusionError, match="attention matched 1 times in the decoder block, expected 2"):
        FUSION.run(block, FACTS)

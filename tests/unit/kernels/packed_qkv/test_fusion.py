from __future__ import annotations

import numpy as np
import pytest

from support.kernel_facts import FACTS
from support.onnx_graphs import Sketch, run
from support.projections import INNER, project
from t5edge.kernels.fusion import FusionError
from t5edge.kernels.packed_qkv.contract import packed_projection
from t5edge.kernels.packed_qkv.fusion import FUSION, QUERY_FUSION


def names(count: int) -> list[str]:
    return [f"layer.0.SelfAttention.{letter}.weight" for letter in "qkv"[:count]]


def random_weights(count: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    return {name: generator.standard_normal((INNER, FACTS.d_model)).astype(np.float32) for name in names(count)}


@pytest.mark.parametrize(("count", "fusion", "kind"), [(3, FUSION, "encoder"), (1, QUERY_FUSION, "decoder")])
def test_fuses_and_keeps_the_numbers(count: int, fusion, kind) -> None:
    sketch = Sketch(kind)
    x = sketch.input("x", "batch", "seq", FACTS.d_model)
    block = sketch.block(*(project(sketch, x, name) for name in names(count)))
    weights = random_weights(count)
    data = np.random.default_rng(0).standard_normal((3, 9, FACTS.d_model)).astype(np.float32)
    before = run(block, {"x": data}, weights)
    assert fusion.run(block, FACTS).matched == 1
    assert block.operator_counts()["MatMul"] == 1
    after = run(block, {"x": data}, weights)
    expected = packed_projection(data, tuple(weights[name].T for name in names(count)), FACTS.num_heads)
    for old, new, reference in zip(before, after, expected, strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(new, reference, rtol=1e-5, atol=1e-5)


def test_two_of_three_projections_fail_the_export() -> None:
    sketch = Sketch()
    x = sketch.input("x", "batch", "seq", FACTS.d_model)
    block = sketch.block(*(project(sketch, x, name) for name in names(2)))
    with pytest.raises(FusionError, match="2 projections share an input, 3 were expected"):
        FUSION.run(block, FACTS)

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from support.kernel_facts import FACTS
from support.onnx_graphs import Sketch, run
from t5edge.kernels.fusion import FusionError, apply_rules
from t5edge.kernels.rms_norm.contract import rms_norm
from t5edge.kernels.rms_norm.fusion import FUSION, RmsNormRule

WIDTH = 40


def norm(
    sketch: Sketch,
    x: ir.Value,
    name: str,
    exponent: float = 2.0,
    epsilon: float = 1e-6,
    axes: tuple[int, ...] = (-1,),
    keepdims: int = 1,
) -> ir.Value:
    squares = sketch.op("Pow", x, sketch.number(exponent))
    mean = sketch.op("ReduceMean", squares, sketch.ints(*axes), keepdims=keepdims)
    root = sketch.op("Sqrt", sketch.op("Add", mean, sketch.number(epsilon)))
    normed = sketch.op("Mul", x, sketch.op("Reciprocal", root))
    return sketch.op("Mul", sketch.weight(name, WIDTH), normed)


def test_fuses_and_keeps_the_numbers() -> None:
    sketch = Sketch()
    x = sketch.input("x", "batch", "seq", WIDTH)
    block = sketch.block(norm(sketch, norm(sketch, x, "first.weight"), "second.weight"))
    generator = np.random.default_rng(0)
    data = generator.standard_normal((3, 7, WIDTH)).astype(np.float32) * 50
    weights = {name: generator.standard_normal(WIDTH).astype(np.float32) for name in ("first.weight", "second.weight")}
    (before,) = run(block, {"x": data}, weights)
    assert FUSION.run(block, FACTS).matched == 2
    assert block.operator_counts() == {"RMSNormalization": 2}
    (after,) = run(block, {"x": data}, weights)
    expected = rms_norm(rms_norm(data, weights["first.weight"]), weights["second.weight"])
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)


def test_epsilon_is_kept_where_it_matters() -> None:
    sketch = Sketch()
    x = sketch.input("x", "seq", WIDTH)
    block = sketch.block(norm(sketch, x, "w", epsilon=1e-2))
    assert apply_rules(block, RmsNormRule.rule()).matched == 1
    small = np.full((1, WIDTH), 1e-3, np.float32)
    ones = np.ones(WIDTH, np.float32)
    (after,) = run(block, {"x": small}, {"w": ones})
    np.testing.assert_allclose(after, rms_norm(small, ones, epsilon=1e-2), rtol=1e-5)


def test_a_cubic_mean_is_left_alone_and_says_why() -> None:
    sketch = Sketch()
    x = sketch.input("x", "batch", "seq", WIDTH)
    block = sketch.block(norm(sketch, x, "w", exponent=3.0))
    outcome = apply_rules(block, RmsNormRule.rule())
    assert outcome.matched == 0
    assert outcome.refusals == ["the exponent is 3.0, not 2: this is not a root mean square"]


@pytest.mark.parametrize("axes", [(1,), (0,), (1, 2), (-2, -1)])
def test_a_mean_over_other_axes_is_left_alone_and_says_why(axes: tuple[int, ...]) -> None:
    sketch = Sketch()
    x = sketch.input("x", WIDTH, WIDTH, WIDTH)
    block = sketch.block(norm(sketch, x, "w", axes=axes))
    outcome = apply_rules(block, RmsNormRule.rule())
    assert outcome.matched == 0
    assert outcome.refusals == [f"the mean runs over axes {list(axes)}, not over the last alone"]


def test_axes_that_the_graph_computes_are_left_alone() -> None:
    sketch = Sketch()
    x, axes = sketch.input("x", WIDTH, WIDTH), ir.Value(name="axes", type=ir.TensorType(ir.DataType.INT64))
    sketch.inputs.append(axes)
    mean = sketch.op("ReduceMean", sketch.op("Pow", x, sketch.number(2.0)), axes, keepdims=1)
    root = sketch.op("Sqrt", sketch.op("Add", mean, sketch.number(1e-6)))
    normed = sketch.op("Mul", x, sketch.op("Reciprocal", root))
    outcome = apply_rules(sketch.block(sketch.op("Mul", sketch.weight("w", WIDTH), normed)), RmsNormRule.rule())
    assert outcome.refusals == ["the mean runs over axes known only at run time, not over the last alone"]


def test_a_mean_that_drops_its_axis_is_left_alone() -> None:
    sketch = Sketch()
    x = sketch.input("x", WIDTH, WIDTH)
    assert apply_rules(sketch.block(norm(sketch, x, "w", keepdims=0)), RmsNormRule.rule()).matched == 0


def test_the_wrong_count_fails_the_export_with_the_reason() -> None:
    sketch = Sketch()
    x = sketch.input("x", "batch", "seq", WIDTH)
    block = sketch.block(norm(sketch, norm(sketch, x, "a", exponent=3.0), "b"))
    with pytest.raises(FusionError, match=r"rms_norm matched 1 times in the encoder block, expected 2.*exponent is 3"):
        FUSION.run(block, FACTS)

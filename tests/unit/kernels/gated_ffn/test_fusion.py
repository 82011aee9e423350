from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from support.kernel_facts import FACTS, with_ffn
from support.onnx_graphs import Sketch, run
from t5edge.kernels.fusion import FusionError, apply_rules
from t5edge.kernels.gated_ffn.contract import gated_ffn
from t5edge.kernels.gated_ffn.fusion import FUSION, rule

WI_0, WI_1, WO = (f"layer.1.DenseReluDense.{name}.weight" for name in ("wi_0", "wi_1", "wo"))


def spelled_gelu(sketch: Sketch, x: ir.Value, cubic_factor: float = 0.044715) -> ir.Value:
    cubic = sketch.op("Mul", sketch.op("Pow", x, sketch.number(3.0)), sketch.number(cubic_factor))
    inner = sketch.op("Mul", sketch.op("Add", x, cubic), sketch.number(math.sqrt(2 / math.pi)))
    one_more = sketch.op("Add", sketch.op("Tanh", inner), sketch.number(1.0))
    return sketch.op("Mul", sketch.op("Mul", x, sketch.number(0.5)), one_more)


def gated(sketch: Sketch, activation: str, cubic_factor: float = 0.044715) -> ir.Value:
    x = sketch.input("x", "batch", "seq", FACTS.d_model)
    gate = sketch.op("MatMul", x, sketch.weight(WI_0, FACTS.d_ff, FACTS.d_model))
    if activation == "gelu_tanh":
        gate = spelled_gelu(sketch, gate, cubic_factor)
    elif activation == "gelu_erf":
        gate = sketch.op("Gelu", gate, approximate="none")
    elif activation == "silu":
        gate = sketch.op("Mul", gate, sketch.op("Sigmoid", gate))
    else:
        gate = sketch.op("Relu", gate)
    up = sketch.op("MatMul", x, sketch.weight(WI_1, FACTS.d_ff, FACTS.d_model))
    return sketch.op("MatMul", sketch.op("Mul", gate, up), sketch.weight(WO, FACTS.d_model, FACTS.d_ff))


def random_weights() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(3)
    up = (FACTS.d_ff, FACTS.d_model)
    shapes = {WI_0: up, WI_1: up, WO: up[::-1]}
    return {name: generator.standard_normal(shape).astype(np.float32) * 0.2 for name, shape in shapes.items()}


@pytest.mark.parametrize("activation", ["gelu_tanh", "silu", "gelu_erf", "relu"])
def test_fuses_and_keeps_the_numbers(activation: str) -> None:
    sketch = Sketch()
    block = sketch.block(gated(sketch, activation))
    x = np.random.default_rng(0).standard_normal((2, 5, FACTS.d_model)).astype(np.float32)
    weights = random_weights()
    (before,) = run(block, {"x": x}, weights)
    assert FUSION.run(block, with_ffn(activation, gated=True)).matched == 1
    assert block.operator_counts()["MatMul"] == 2
    (after,) = run(block, {"x": x}, weights)
    expected = gated_ffn(x, weights[WI_0].T, weights[WI_1].T, weights[WO].T, activation)
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-5)


def test_tanh_gelu_is_not_erf_gelu() -> None:
    sketch = Sketch()
    block = sketch.block(gated(sketch, "gelu_erf"))
    with pytest.raises(FusionError, match="gated_ffn matched 0 times"):
        FUSION.run(block, with_ffn("gelu_tanh", gated=True))


def test_a_near_miss_of_the_constant_is_left_alone_and_says_why() -> None:
    sketch = Sketch()
    block = sketch.block(gated(sketch, "gelu_tanh", cubic_factor=0.0448))
    outcome = apply_rules(block, rule("gelu_tanh"))
    assert outcome.matched == 0
    assert outcome.refusals[0].startswith("cubic_factor is 0.0448")


def test_gate_and_up_are_packed_in_this_order() -> None:
    sketch = Sketch()
    block = sketch.block(gated(sketch, "silu"))
    FUSION.run(block, with_ffn("silu", gated=True))
    packed = next(name for name in block.graph.initializers if name.startswith("packed."))
    assert packed.index("wi_0") < packed.index("wi_1")

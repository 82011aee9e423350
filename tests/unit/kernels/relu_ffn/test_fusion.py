from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from support.kernel_facts import FACTS, with_ffn
from support.onnx_graphs import Sketch, run
from t5edge.kernels.fusion import FusionError, apply_rules
from t5edge.kernels.relu_ffn.contract import ffn
from t5edge.kernels.relu_ffn.fusion import FUSION, rule

WI, WO = "layer.1.DenseReluDense.wi.weight", "layer.1.DenseReluDense.wo.weight"


def plain(sketch: Sketch, activation: str) -> ir.Value:
    x = sketch.input("x", "batch", "seq", FACTS.d_model)
    hidden = sketch.op("MatMul", x, sketch.weight(WI, FACTS.d_ff, FACTS.d_model))
    if activation == "silu":
        hidden = sketch.op("Mul", hidden, sketch.op("Sigmoid", hidden))
    else:
        hidden = sketch.op("Relu" if activation == "relu" else "LeakyRelu", hidden)
    return sketch.op("MatMul", hidden, sketch.weight(WO, FACTS.d_model, FACTS.d_ff))


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_recognises_and_keeps_the_numbers(activation: str) -> None:
    sketch = Sketch()
    block = sketch.block(plain(sketch, activation))
    generator = np.random.default_rng(0)
    weights = {
        WI: generator.standard_normal((FACTS.d_ff, FACTS.d_model)).astype(np.float32),
        WO: generator.standard_normal((FACTS.d_model, FACTS.d_ff)).astype(np.float32),
    }
    x = generator.standard_normal((2, 5, FACTS.d_model)).astype(np.float32)
    (before,) = run(block, {"x": x}, weights)
    assert FUSION.run(block, with_ffn(activation, gated=False)).matched == 1
    (after,) = run(block, {"x": x}, weights)
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(after, ffn(x, weights[WI].T, weights[WO].T, activation), rtol=1e-4, atol=1e-4)


def test_another_activation_fails_the_export() -> None:
    sketch = Sketch()
    block = sketch.block(plain(sketch, "leaky"))
    with pytest.raises(FusionError, match="relu_ffn matched 0 times in the encoder block, expected 1"):
        FUSION.run(block, with_ffn("relu", gated=False))


def test_a_product_of_two_inputs_is_left_alone_and_says_why() -> None:
    sketch = Sketch()
    x = sketch.input("x", "batch", "seq", FACTS.d_model)
    other = sketch.input("other", FACTS.d_model, FACTS.d_ff)
    hidden = sketch.op("Relu", sketch.op("MatMul", x, other))
    block = sketch.block(sketch.op("MatMul", hidden, sketch.weight(WO, FACTS.d_model, FACTS.d_ff)))
    outcome = apply_rules(block, rule("relu"))
    assert outcome.matched == 0
    assert outcome.refusals == ["wi is not a weight of the checkpoint in MatMul's layout"]

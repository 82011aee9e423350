"""Weight expressions as the fusions rewrite them: no numbers are touched."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from t5edge.kernels.weights import PlannedTensor, Source, expression_of, planned_value, stack_of

QK = stack_of("q", (3, 4)).join(stack_of("k", (3, 4))).transpose()


def test_stacks_of_different_width_do_not_join() -> None:
    with pytest.raises(ValueError, match="cannot join"):
        stack_of("q", (3, 4)).join(stack_of("o", (4, 3)))
    with pytest.raises(ValueError, match="cannot join"):
        stack_of("q", (3, 4)).join(stack_of("k", (3, 4)).transpose())


def test_shapes_and_keys_follow_the_rewrites() -> None:
    assert (QK.shape, QK.key) == ((4, 6), "T(q+k)")
    assert (QK.transpose().shape, QK.transpose().key) == ((6, 4), "q+k")
    assert (stack_of("norm", (5,)).shape, stack_of("norm", (5,)).key) == ((5,), "norm")
    assert QK.scaled({"k": 0.25}).key == "T(q+k*0.25)"
    assert QK.scaled({"k": 0.25}).scaled({"k": 4.0}) == QK
    assert QK.prefixed("block.3.").sources == (Source("block.3.q"), Source("block.3.k"))


def test_planned_tensors_have_no_data() -> None:
    with pytest.raises(RuntimeError, match="has an expression"):
        PlannedTensor(QK, ir.DataType.FLOAT, "qk").numpy()


def test_a_planned_value_gives_its_expression_back() -> None:
    value = planned_value(QK, ir.DataType.FLOAT16, "qk")
    assert expression_of(value) is QK
    assert (value.dtype, list(value.shape or ())) == (ir.DataType.FLOAT16, [4, 6])
    assert expression_of(ir.Value(name="computed")) is None
    assert expression_of(None) is None

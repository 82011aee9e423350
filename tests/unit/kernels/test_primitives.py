from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from t5edge.exporter.graph.portable import OPSET, rewrite, too_new
from t5edge.kernels.primitives import dtype_of, expand
from t5edge.kernels.values import as_int64, constant_value

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
Ports = dict[str, tuple[ir.DataType, list[Any]]]


def graph_of(op_type: str, ports: Ports, constants: dict[str, np.ndarray], outputs: int = 1, **attributes: Any) -> Any:
    """A model of one node, which reads the ports and then the constants."""
    inputs = [ir.val(name, dtype, shape) for name, (dtype, shape) in ports.items()]
    weights = [constant_value(array, name) for name, array in constants.items()]
    node = ir.node(op_type, [*inputs, *weights], attributes, num_outputs=outputs, name="block/Node_3")
    for index, value in enumerate(node.outputs):
        value.name, value.type = f"out_{index}", ir.TensorType(inputs[0].dtype or FLOAT)
    graph = ir.Graph(inputs, node.outputs, nodes=[node], initializers=weights, opset_imports={"": 23}, name="one")
    return ir.Model(graph, ir_version=10)


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, feeds)


def rewritten(model: ir.Model, feeds: dict[str, np.ndarray], tolerance: float = 2e-6) -> list[str]:
    """Rewrite a model, which must not change its numbers; returns the operators it then has."""
    before = run(model, feeds)
    rewrite(model)
    assert too_new(model) == []
    assert model.graph.opset_imports[""] == OPSET
    for old, new in zip(before, run(model, feeds), strict=True):
        assert new.dtype == old.dtype
        np.testing.assert_allclose(new.astype(float), old.astype(float), rtol=tolerance, atol=tolerance)
    return [node.op_type for node in model.graph]


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize(("dtype", "numpy", "tolerance"), [(FLOAT, np.float32, 2e-6), (HALF, np.float16, 4e-3)])
def test_attention(dtype: ir.DataType, numpy: Any, tolerance: float) -> None:
    """Queries of another length than keys, a mask that broadcasts, a hidden key."""
    shapes = {"q": (2, 3, 5, 8), "k": (2, 3, 7, 8), "v": (2, 3, 7, 8), "mask": (1, 3, 5, 7)}
    feeds = {name: normal(*shape, dtype=numpy) for name, shape in shapes.items()}
    feeds["mask"][..., -1] = -30000
    model = graph_of("Attention", {name: (dtype, list(shape)) for name, shape in shapes.items()}, {}, scale=1.0)
    operators = rewritten(model, feeds, tolerance)
    casts = ["Cast", "Cast"] if dtype == HALF else []
    assert operators == ["Transpose", "MatMul", *casts, "Add", "Softmax", *casts[:1], "MatMul"]
    names = [node.name for node in model.graph if node.op_type in ("Add", "Softmax")]
    assert names == ["block/Node_3/Add", "block/Node_3/Softmax"]


@pytest.mark.parametrize(("dtype", "numpy", "tolerance"), [(FLOAT, np.float32, 2e-6), (HALF, np.float16, 2e-3)])
def test_rms_norm(dtype: ir.DataType, numpy: Any, tolerance: float) -> None:
    ports: Ports = {"x": (dtype, [2, 5, 24])}
    x = normal(2, 5, 24, dtype=numpy)
    model = graph_of("RMSNormalization", ports, {"w": normal(24, dtype=numpy)}, axis=-1, epsilon=1e-3, stash_type=1)
    assert "Pow" in rewritten(model, {"x": x}, tolerance)


def test_squares_beyond_float16_do_not_overflow_in_a_norm() -> None:
    ones = np.ones(24, np.float16)
    model = graph_of("RMSNormalization", {"x": (HALF, [1, 24])}, {"w": ones}, axis=-1, epsilon=1e-6)
    rewrite(model)
    (found,) = run(model, {"x": np.full((1, 24), 3000, np.float16)})
    np.testing.assert_allclose(found, np.ones((1, 24)), rtol=1e-3)


@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_gelu(approximate: str) -> None:
    x = np.linspace(-9, 9, 4001, dtype=np.float32)
    model = graph_of("Gelu", {"x": (FLOAT, [4001])}, {}, approximate=approximate)
    operators = rewritten(model, {"x": x})
    assert ("Tanh" in operators, "Erf" in operators) == (approximate == "tanh", approximate == "none")


def test_the_two_gelus_differ() -> None:
    x = np.linspace(-3, 3, 101, dtype=np.float32)
    models = [graph_of("Gelu", {"x": (FLOAT, [101])}, {}, approximate=kind) for kind in ("tanh", "none")]
    for model in models:
        rewrite(model)
    tanh, erf = (run(model, {"x": x})[0] for model in models)
    assert 1e-4 < np.abs(tanh - erf).max() < 1e-3


def test_split_and_reductions_are_spelled_as_they_were() -> None:
    split = graph_of("Split", {"x": (FLOAT, [2, 6])}, {}, outputs=3, axis=-1, num_outputs=3)
    assert rewritten(split, {"x": normal(2, 6)}) == ["Split"]
    for name in ("ReduceMax", "ReduceMin", "ReduceL2"):
        reduced = graph_of(name, {"x": (FLOAT, [2, 6])}, {"axes": as_int64(1)}, keepdims=0)
        assert rewritten(reduced, {"x": normal(2, 6)}) == [name]
    assert [node.name for node in split.graph] == ["block/Node_3"]


def test_float16_scales_become_float32_beside_casts() -> None:
    scale, zero = np.array(0.0125, np.float16), np.zeros((), np.int8)
    x = np.linspace(-2, 2, 401).astype(np.float16)
    model = graph_of("QuantizeLinear", {"x": (HALF, [401])}, {"scale": scale, "zero": zero})
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.INT8)
    rewrite(model)
    assert [node.op_type for node in model.graph] == ["Cast", "QuantizeLinear"]
    (codes,) = run(model, {"x": x})
    np.testing.assert_array_equal(codes, np.clip(np.rint(x.astype(float) / float(scale)), -128, 127))
    back = graph_of("DequantizeLinear", {"x": (ir.DataType.INT8, [401])}, {"scale": scale, "zero": zero})
    back.graph.outputs[0].type = ir.TensorType(HALF)
    rewrite(back)
    assert [node.op_type for node in back.graph] == ["DequantizeLinear", "Cast"]
    (found,) = run(back, {"x": codes})
    np.testing.assert_allclose(found.astype(float), codes * float(scale), rtol=1e-3)


def test_a_single_scale_gets_a_zero_point_of_its_type() -> None:
    """ONNX Runtime moves such a pair over a Transpose, and takes integers without a zero point for unsigned there."""
    x, codes = ir.val("x", ir.DataType.INT8, [2, 3]), np.array([[-100, 5, 100], [1, -2, 3]], np.int8)
    tape = ir.tape.Tape()
    unit = constant_value(np.ones((), np.float32), "unit")
    out = tape.op("Mul", [tape.op("Transpose", [tape.op("DequantizeLinear", [x, unit])], {"perm": [1, 0]}), unit])
    out.name, out.type = "out", ir.TensorType(FLOAT)
    graph = ir.Graph([x], [out], nodes=tape.nodes, initializers=[unit], opset_imports={"": 21}, name="moved")
    model = ir.Model(graph, ir_version=10)
    rewrite(model)
    (found,) = run(model, {"x": codes})
    np.testing.assert_array_equal(found, codes.T)


@pytest.mark.parametrize(
    ("op_type", "attributes", "says"),
    [
        ("Attention", {"scale": 0.5}, "is not one of ours"),
        ("Attention", {"scale": 1.0, "is_causal": 1}, "has is_causal"),
        ("RMSNormalization", {"axis": -2}, "is not over the last axis"),
        ("Gelu", {"approximate": "tanh", "beta": 1.0}, "has beta"),
    ],
)
def test_a_node_that_says_more_is_refused(op_type: str, attributes: dict[str, Any], says: str) -> None:
    count = {"Attention": 4, "RMSNormalization": 2, "Gelu": 1}[op_type]
    values = [ir.val(f"x{index}", FLOAT, [2, 2, 4, 4]) for index in range(count)]
    with pytest.raises(ValueError, match=says):
        expand(ir.node(op_type, values, attributes, name="one"))


def test_what_opset_17_has_is_left_alone() -> None:
    x = ir.val("x", FLOAT, [2, 2])
    assert expand(ir.node("MatMul", [x, x])) is None
    assert expand(ir.node("Split", [x], {"axis": 0}, num_outputs=2)) is None


def test_the_dtype_of_a_value_is_found_behind_it() -> None:
    x, codes = ir.val("x", HALF, [2, 2]), ir.val("codes", ir.DataType.INT8, [2, 2])
    tape = ir.tape.Tape()
    product = tape.op("MatMul", [tape.op("Reshape", [x, ir.val("shape")]), x])
    chosen = tape.op("Where", [ir.val("mask", ir.DataType.BOOL), product, x])
    assert dtype_of(chosen) == HALF
    assert dtype_of(tape.op("Cast", [chosen], {"to": FLOAT})) == FLOAT
    assert dtype_of(tape.op("DequantizeLinear", [codes, ir.val("scale", HALF, [])])) == HALF

"""Operators newer than opset 17 as the primitives that they are defined by: what an older runtime can read.

    Attention(q, k, v, mask)   softmax(q @ k^T + mask) @ v
    RMSNormalization(x, w)     x / sqrt(mean(x^2) + epsilon) * w
    Gelu(x)                    0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))   or   0.5 x (1 + erf(x / sqrt(2)))
    Split, Reduce*             the same operators as they were: sizes by the number of outputs, axes as an attribute
    QuantizeLinear and back    scales in float32, which opset 17 knows alone, and a Cast beside

Softmax, statistics and GELU are computed in float32 whatever the type of x, as the fused kernels do. The shapes are
those that TensorRT's builder fuses into one attention kernel, and ONNX Runtime into its own norm and GELU. A primitive
is named after the operator it stands for: ``decoder.block.0.block/Attention_33/Softmax``.

Sources: the function bodies in ONNX' operator schemas (opsets 20, 23).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from t5edge.kernels.values import constant_value
from t5edge.kernels.weights import PlannedTensor, expression_of, planned_value

FLOAT = ir.DataType.FLOAT
Expansion = Callable[[ir.tape.Tape, ir.Node], Sequence[ir.Value]]
"""Writes the primitives of a node to the tape; returns what takes the place of its outputs."""
KNOWN: Mapping[str, frozenset[str]] = {
    "Attention": frozenset({"scale"}),
    "RMSNormalization": frozenset({"axis", "epsilon", "stash_type"}),
    "Gelu": frozenset({"approximate"}),
}
"""Attributes whose meaning is written out here; any other would be lost."""


def expand(node: ir.Node) -> tuple[list[ir.Node], Sequence[ir.Value]] | None:
    """The primitives of ``node`` in order, and their outputs; None where it is in opset 17 as it stands.

    Raises:
        ValueError: the node says something that the primitives here do not.
    """
    expansion = EXPANSIONS.get(node.op_type)
    if expansion is None:
        return None
    unknown = node.attributes.keys() - KNOWN.get(node.op_type, node.attributes.keys())
    if unknown:
        raise ValueError(f"{node.op_type} '{node.name}' has {', '.join(sorted(unknown))}")
    tape = ir.tape.Tape()
    outputs = expansion(tape, node)
    return (list(tape.nodes), outputs) if tape.nodes else None


def dtype_of(value: ir.Value | None) -> ir.DataType:
    """The dtype of a value of our graphs, which say it at weights, ports and casts only."""
    assert value is not None
    if value.dtype is not None:
        return value.dtype
    node = value.producer()
    assert node is not None, f"{value.name} has no type"
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    return dtype_of(node.inputs[1 if node.op_type in ("Where", "DequantizeLinear") else 0])


def _attention(tape: ir.tape.Tape, node: ir.Node) -> list[ir.Value]:
    """[batch, heads, target, d_kv]."""
    query, key, value, mask = _given(node)
    if len(node.inputs) != 4 or node.attributes.get_float("scale", 0.0) != 1.0:
        raise ValueError(f"Attention '{node.name}' is not one of ours: q, k, v, mask and scale 1")
    scores = tape.op("MatMul", [query, tape.op("Transpose", [key], {"perm": [0, 1, 3, 2]})])
    wide = [x if dtype_of(x) == FLOAT else tape.op("Cast", [x], {"to": FLOAT}) for x in (scores, mask)]
    weights = tape.op("Softmax", [tape.op("Add", wide)], {"axis": -1})
    if dtype_of(value) != FLOAT:
        weights = tape.op("Cast", [weights], {"to": dtype_of(value)})
    return [tape.op("MatMul", [weights, value])]


def _rms_norm(tape: ir.tape.Tape, node: ir.Node) -> list[ir.Value]:
    """The shape of x, [..., d_model]."""
    x, weight = _given(node)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    if node.attributes.get_int("axis", -1) != -1:
        raise ValueError(f"RMSNormalization '{node.name}' is not over the last axis")

    def normed(wide: ir.Value) -> ir.Value:
        square = tape.op("Pow", [wide, _number(2.0)])
        mean = tape.op("ReduceMean", [square], {"axes": [-1], "keepdims": 1})
        return tape.op("Div", [wide, tape.op("Sqrt", [tape.op("Add", [mean, _number(epsilon)])])])

    return [tape.op("Mul", [_in_float32(tape, x, normed), weight])]


def _gelu(tape: ir.tape.Tape, node: ir.Node) -> list[ir.Value]:
    (x,) = _given(node)
    by_tanh = node.attributes.get_string("approximate", "none") == "tanh"

    def bent(wide: ir.Value) -> ir.Value:
        if not by_tanh:
            return tape.op("Erf", [tape.op("Div", [wide, _number(math.sqrt(2))])])
        cubic = tape.op("Mul", [tape.op("Pow", [wide, _number(3.0)]), _number(0.044715)])
        return tape.op("Tanh", [tape.op("Mul", [tape.op("Add", [wide, cubic]), _number(math.sqrt(2 / math.pi))])])

    def gelu(wide: ir.Value) -> ir.Value:
        half = tape.op("Mul", [wide, _number(0.5)])
        return tape.op("Mul", [half, tape.op("Add", [bent(wide), _number(1.0)])])

    return [_in_float32(tape, x, gelu)]


def _split(tape: ir.tape.Tape, node: ir.Node) -> Sequence[ir.Value]:
    """Equal parts, which the number of outputs says."""
    if "num_outputs" not in node.attributes:
        return []
    axis = {"axis": node.attributes.get_int("axis", 0)}
    return tape.op_multi_out("Split", [*node.inputs], axis, num_outputs=len(node.outputs))


def _reduce(tape: ir.tape.Tape, node: ir.Node) -> list[ir.Value]:
    x, *axis = _given(node)
    axes = ir.convenience.get_const_tensor(axis[0]) if axis else None
    if axes is None:
        return []
    attributes = {"axes": axes.numpy().tolist(), "keepdims": node.attributes.get_int("keepdims", 1)}
    return [tape.op(node.op_type, [x], attributes)]


def _quantize(tape: ir.tape.Tape, node: ir.Node) -> list[ir.Value]:
    x, scale, *zero = _given(node)
    if dtype_of(scale) == FLOAT:
        return []
    wide = tape.op("Cast", [x], {"to": FLOAT})
    return [tape.op("QuantizeLinear", [wide, _widened(scale), *zero], dict(node.attributes))]


def _dequantize(tape: ir.tape.Tape, node: ir.Node) -> list[ir.Value]:
    """With a zero point where one number scales all: ONNX Runtime takes integers that it moves for unsigned without."""
    values, scale, *zero = _given(node)
    narrow, single = dtype_of(scale), scale.shape is not None and len(scale.shape) == 0
    if narrow == FLOAT and (zero or not single):
        return []
    if single and not zero:
        zero = [constant_value(np.zeros((), np.int8), "int8_0")]
    scale = scale if narrow == FLOAT else _widened(scale)
    wide = tape.op("DequantizeLinear", [values, scale, *zero], dict(node.attributes))
    return [wide if narrow == FLOAT else tape.op("Cast", [wide], {"to": narrow})]


def _gather(tape: ir.tape.Tape, node: ir.Node) -> list[ir.Value]:
    """Rows of scales that ``_dequantize`` reads as well, and that are stored once."""
    scale, places = _given(node)
    if not _is_scale(scale) or dtype_of(scale) == FLOAT:
        return []
    rows = tape.op("Gather", [_widened(scale), places], dict(node.attributes))
    return [tape.op("Cast", [rows], {"to": dtype_of(scale)})]


def _given(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None]


def _in_float32(tape: ir.tape.Tape, x: ir.Value, function: Callable[[ir.Value], ir.Value]) -> ir.Value:
    """``function`` of x computed in float32 and rounded to the dtype of x."""
    dtype = dtype_of(x)
    if dtype == FLOAT:
        return function(x)
    return tape.op("Cast", [function(tape.op("Cast", [x], {"to": FLOAT}))], {"to": dtype})


def _number(value: float) -> ir.Value:
    return constant_value(np.array(value, np.float32), f"float_{value!r}")


def _is_scale(value: ir.Value) -> bool:
    """Whether it is a quantized weight's scales (``calibration.quantize.QuantizedMatrix``)."""
    return getattr(expression_of(value), "part", None) == "scales"


def _widened(scale: ir.Value) -> ir.Value:
    """The same scales in float32: of weights by the same expression, whose numbers a narrow dtype holds exactly."""
    tensor, name = scale.const_value, str(scale.name)
    if isinstance(tensor, PlannedTensor):
        return planned_value(tensor.expression, FLOAT, name)
    assert tensor is not None
    return constant_value(tensor.numpy().astype(np.float32), name)


EXPANSIONS: Mapping[str, Expansion] = {
    "Attention": _attention,
    "RMSNormalization": _rms_norm,
    "Gelu": _gelu,
    "Split": _split,
    "ReduceMax": _reduce,
    "ReduceMin": _reduce,
    "ReduceL2": _reduce,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Gather": _gather,
}

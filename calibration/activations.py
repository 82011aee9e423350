"""QuantizeLinear and DequantizeLinear on the inputs of MatMuls whose weights are int8 already.

    before : x -> MatMul <- DequantizeLinear(q, scales)
    after  : x -> QuantizeLinear(s, 0) -> DequantizeLinear(s, 0) -> MatMul <- DequantizeLinear(q, scales)

Symmetric int8, so TensorRT reads it; ONNX Runtime turns it into MatMulIntegerToFloat, with unsigned activations where
the processor prefers them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from t5edge.calibration.quantize import QuantizedMatrix
from t5edge.calibration.scheme import round_up
from t5edge.kernels.values import constant_value
from t5edge.kernels.weights import expression_of

ZERO = "zero_point"


def quantize_activations(model: ir.Model, scales: Mapping[str, float]) -> list[str]:
    """Quantize the inputs of the MatMuls named in ``scales`` (weight's key -> scale); returns the keys.

    MatMuls that share an input get a pair of their own each, whose scales differ in the last bits: equal nodes ONNX
    Runtime would merge, and it then leaves all but one of the MatMuls in float32, four times slower. Float16, which is
    for GPUs, drops most of the difference.
    """
    graph = model.graph
    readers: dict[ir.Value, int] = {}
    done = []
    for node in list(graph):
        base = _quantized_weight(node)
        scale = None if base is None else scales.get(base.base.origin)
        x = node.inputs[0] if node.inputs else None
        if base is None or scale is None or x is None:
            continue
        number = readers.get(x, 0)
        readers[x] = number + 1
        _insert(graph, node, x, _apart(scale, number))
        done.append(base.base.origin)
    return done


def _quantized_weight(node: ir.Node) -> QuantizedMatrix | None:
    weight = node.inputs[1] if node.op_type == "MatMul" else None
    source = None if weight is None else weight.producer()
    expression = (
        expression_of(source.inputs[0]) if source is not None and source.op_type == "DequantizeLinear" else None
    )
    return expression if isinstance(expression, QuantizedMatrix) else None


def _apart(scale: float, steps: int) -> np.ndarray:
    """``scale``, ``steps`` float32 numbers further on."""
    value = np.array(scale, np.float32)
    for _ in range(steps):
        value = np.nextafter(value, np.float32(np.inf))
    return value


def _insert(graph: ir.Graph, matmul: ir.Node, x: ir.Value, scale: np.ndarray) -> None:
    scales = matmul.inputs[1].producer().inputs[1]  # type: ignore[union-attr]
    assert scales is not None
    assert scales.dtype is not None
    dtype = scales.dtype.numpy()
    narrow = scale if dtype == np.float32 else round_up(scale, np.float16)
    step = constant_value(narrow.astype(dtype), f"{matmul.name}/input_scale")
    graph.register_initializer(step)
    graph.initializers.setdefault(ZERO, constant_value(np.zeros((), np.int8), ZERO))
    zero = graph.initializers[ZERO]
    tape = ir.tape.Tape()
    rounded = tape.op("QuantizeLinear", [x, step, zero])
    tape.op("DequantizeLinear", [rounded, step, zero])
    for node in tape.nodes:
        node.name = f"{matmul.name}/input_{node.op_type}"
        node.outputs[0].name = f"{node.name}:0"
    graph.insert_before(matmul, tape.nodes)
    matmul.replace_input_with(0, tape.nodes[-1].outputs[0])

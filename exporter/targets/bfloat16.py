"""Run bfloat16 graphs where no kernel exists: float32 kernels, every tensor rounded to bfloat16.

ONNX Runtime's CPU provider has no bfloat16 attention, MatMul or norm. This rewrites a loaded graph: weights become float32
(exact), each operator runs in float32, and each of its results is rounded to bfloat16 and back. That is what hardware with
bfloat16 storage and float32 accumulation computes, so parity is judged on it; it says nothing about speed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import UserError
from exporter.ports import GraphPorts, Port

if TYPE_CHECKING:
    import onnx_ir as ir

    from exporter.targets.onnxruntime import OnnxRuntimeModel

ROUNDING_REMOVERS = ["CastElimination", "CastChainElimination", "InsertCastTransformer"]
"""Optimizers of ONNX Runtime that would drop a pair of casts that rounds."""


def emulate(model: ir.Model) -> ir.Model:
    """Rewrite in place: float32 compute, bfloat16 rounding after each operator. Ports become float32."""
    import onnx_ir as ir

    wide, narrow = ir.DataType.FLOAT, ir.DataType.BFLOAT16
    graph = model.graph
    for value in graph.initializers.values():
        if value.dtype == narrow and value.const_value is not None:
            array = value.const_value.numpy().astype(np.float32)
            value.const_value = ir.tensor(array, name=value.name)
            value.dtype = wide
    for port in (*graph.inputs, *graph.outputs):
        if port.dtype == narrow:
            port.dtype = wide
    floats = _float_values(graph)
    for node in list(graph):
        for output in node.outputs:
            if output in floats:
                _round(graph, node, output)
    return model


def _float_values(graph: ir.Graph) -> set[Any]:
    """Values that hold floats: outputs of float operators, found by following the inputs' types."""
    import onnx_ir as ir

    integer = {"Shape", "Range", "Squeeze", "Sub", "Max", "Min"}
    floats = {v for v in (*graph.inputs, *graph.initializers.values()) if v.dtype == ir.DataType.FLOAT}
    for node in graph:
        if node.op_type == "Cast":
            continue  # to bool for masks, or the final cast of the logits, exact
        if node.op_type not in integer and any(v in floats for v in node.inputs if v is not None):
            floats.update(node.outputs)
    return floats


EXACT = frozenset({"Transpose", "Reshape", "Split", "Concat", "Gather", "Unsqueeze", "Where", "Expand", "Relu"})
"""Operators that only move or select numbers: their results are bfloat16 already."""


def _round(graph: ir.Graph, node: ir.Node, output: ir.Value) -> None:
    import onnx_ir as ir

    if node.op_type in EXACT:
        return
    tape = ir.tape.Tape()
    down = tape.op("Cast", [output], {"to": ir.DataType.BFLOAT16})
    rounded = tape.op("Cast", [down], {"to": ir.DataType.FLOAT})
    users = [use for use in output.uses() if use.node is not tape.nodes[0]]
    for user in users:
        user.node.replace_input_with(user.idx, rounded)
    graph.insert_after(node, tape.nodes)
    for index, graph_output in enumerate(graph.outputs):
        if graph_output is output:
            rounded.name, output.name = output.name, f"{output.name}.unrounded"
            rounded.type, rounded.shape = output.type, output.shape
            graph.outputs[index] = rounded


def open_emulated(folder: Path, ports: GraphPorts, options: Any) -> OnnxRuntimeModel:
    """Both graphs of a bfloat16 bundle, emulated on the CPU.

    Raises:
        UserError: onnx-ir is missing (the device has only the runtime's packages).
    """
    try:
        import onnx_ir as ir
    except ImportError as error:
        raise UserError(
            "bfloat16 has no kernels in onnxruntime's CPU provider, and emulating it needs onnx-ir: "
            "pip install onnx-ir, or export in fp32, fp16 or int8."
        ) from error
    import onnxruntime

    from exporter.targets.onnxruntime import OnnxRuntimeModel

    sessions = []
    for name in ("encoder", "decoder"):
        model = emulate(ir.load(folder / f"{name}.onnx"))
        data = ir.to_proto(model).SerializeToString()
        sessions.append(
            onnxruntime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"], disabled_optimizers=ROUNDING_REMOVERS
            )
        )
    wide = tuple(Port(p.name, "float" if p.dtype == "bfloat16" else p.dtype, p.axes) for p in ports.inputs)
    return OnnxRuntimeModel(sessions[0], sessions[1], GraphPorts(wide, ports.outputs))

"""Run 16-bit graphs as hardware does where no kernel does: float32 kernels, every tensor rounded to the narrow dtype.

ONNX Runtime's CPU provider has no bfloat16 attention, MatMul or norm. For float16 it widens operators to float32 and
then drops the roundings between them, so the residual stream is float32 there and an overflow never shows. This
rewrites a loaded graph: weights are widened (exact), each operator runs in float32, and each of its results is rounded
to the narrow dtype and back. That is what hardware with narrow storage and float32 accumulation computes, so parity is
judged on it; it says nothing about speed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5edge.bundle.dtype import NARROW
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.ports import GraphPorts, Port
from t5edge.errors import UserError
from t5edge.runtime.onnxruntime.model import OnnxRuntimeEncoder, OnnxRuntimeModel
from t5edge.runtime.onnxruntime.sessions import session_in_memory

if TYPE_CHECKING:
    import onnx_ir as ir


ROUNDING_REMOVERS = ["CastElimination", "CastChainElimination", "InsertCastTransformer"]
"""Optimizers of ONNX Runtime that would drop a pair of casts that rounds."""

WITHOUT_FLOATS = frozenset({"Shape", "Range", "Squeeze", "Sub", "Max", "Min", "QuantizeLinear", "Cast"})
"""Operators of our graphs whose results are no floats to round: integers, masks, and the logits' exact widening."""

EXACT = frozenset({"Transpose", "Reshape", "Split", "Concat", "Gather", "Unsqueeze", "Where", "Expand", "Relu"})
"""Operators that only move or select numbers: their results are narrow already."""


def emulate(model: ir.Model, compute: str) -> ir.Model:
    """Rewrite in place: float32 operators, rounding to ``compute`` after each. Ports become float32."""
    import onnx_ir as ir

    narrow = ir.DataType[compute.upper()]
    graph = model.graph
    floats = _float_values(graph, narrow)
    _bypass_casts(graph, narrow)
    for node in list(graph):
        for output in node.outputs:
            if output in floats and node.op_type not in EXACT:
                _round(graph, node, output, narrow)
    _widen_ports(graph, narrow)
    _widen_weights(graph, narrow)
    return model


def widen(model: ir.Model, compute: str) -> ir.Model:
    """Rewrite in place: ports and weights of ``compute`` become float32, and all between; nothing is rounded."""
    import onnx_ir as ir

    narrow = ir.DataType[compute.upper()]
    _bypass_casts(model.graph, narrow)
    _widen_ports(model.graph, narrow)
    _widen_weights(model.graph, narrow)
    return model


def _widen_ports(graph: ir.Graph, narrow: ir.DataType) -> None:
    import onnx_ir as ir

    for port in (*graph.inputs, *graph.outputs):
        if port.dtype == narrow:
            port.dtype = ir.DataType.FLOAT


def _bypass_casts(graph: ir.Graph, narrow: ir.DataType) -> None:
    """Casts to the narrow dtype, where a portable graph computes in float32 by itself, leave float32 as it is."""
    import onnx_ir as ir

    for node in graph:
        if _narrows(node, narrow):
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)


def _narrows(node: ir.Node, narrow: ir.DataType) -> bool:
    return node.op_type == "Cast" and node.attributes["to"].as_int() == narrow


def widened_ports(ports: GraphPorts, compute: str) -> GraphPorts:
    """The ports of a widened graph."""

    def wide(port: Port) -> Port:
        return Port(port.name, "float" if port.dtype == compute else port.dtype, port.axes)

    return GraphPorts(tuple(map(wide, ports.inputs)), tuple(map(wide, ports.outputs)))


def _widen_weights(graph: ir.Graph, narrow: ir.DataType) -> None:
    """A Cast behind every narrow weight; ONNX Runtime folds it at load, so the model stays a small file."""
    import onnx_ir as ir

    tape = ir.tape.Tape()
    for value in graph.initializers.values():
        if value.dtype == narrow:
            users = list(value.uses())
            wide = tape.op("Cast", [value], {"to": ir.DataType.FLOAT})
            for user in users:
                user.node.replace_input_with(user.idx, wide)
    graph.insert_before(graph[0], tape.nodes)


def _float_values(graph: ir.Graph, narrow: ir.DataType) -> set[Any]:
    """Values that hold floats: outputs of float operators, found by following the inputs' types."""
    floats = {v for v in (*graph.inputs, *graph.initializers.values()) if v.dtype == narrow}
    for node in graph:
        if _narrows(node, narrow):
            floats.update(node.outputs)
        if node.op_type not in WITHOUT_FLOATS and any(v in floats for v in node.inputs if v is not None):
            floats.update(node.outputs)
    return floats


def _round(graph: ir.Graph, node: ir.Node, output: ir.Value, narrow: ir.DataType) -> None:
    import onnx_ir as ir

    tape = ir.tape.Tape()
    down = tape.op("Cast", [output], {"to": narrow})
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


def open_rounded(folder: Path, manifest: Manifest, options: Any) -> OnnxRuntimeEncoder:
    """The graphs of a bundle whose compute dtype is one of ``NARROW``, emulated on the CPU.

    Raises:
        UserError: onnx-ir is missing (the device has only the runtime's packages).
    """
    compute = manifest.precision.compute
    assert compute in NARROW, compute
    try:
        import onnx_ir as ir
    except ImportError as error:
        raise UserError(
            f"{compute} has no kernels of its own in onnxruntime's CPU provider, and emulating it needs onnx-ir: "
            "pip install onnx-ir, or export in fp32, fp16 or int8."
        ) from error
    sessions = []
    for name in manifest.architecture.stacks:
        model = emulate(ir.load(folder / f"{name}.onnx"), compute)
        data = ir.to_proto(model).SerializeToString()
        sessions.append(session_in_memory(data, folder, options, ROUNDING_REMOVERS))
    if manifest.architecture.encoder_alone:
        return OnnxRuntimeEncoder(*sessions)
    own = widened_ports(manifest.ports["decoder"], compute)
    return OnnxRuntimeModel(sessions[0], sessions[1], own, rows_share_cross=manifest.rows_share_cross)

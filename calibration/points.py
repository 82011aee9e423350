"""The places where a graph may be quantized: every MatMul with a weight, and the token table.

encoder.block.3.qkv      a packed MatMul of one layer          decoder.block.3.cross_kv   in the encoder graph
encoder.block.3.wo       its input is the FFN's hidden state    lm_head, embedding
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from t5edge.bundle.precision import Precision
from t5edge.calibration.quantize import TABLE
from t5edge.calibration.scheme import Scheme, scheme_for, table_scheme
from t5edge.exporter.graph.assemble import Graphs
from t5edge.kernels.weights import PlannedTensor, StackedWeight, is_behind_pooling

ROLES = {
    ("SelfAttention", "q"): "qkv",
    ("SelfAttention", "o"): "o",
    ("EncDecAttention", "q"): "cross_q",
    ("EncDecAttention", "k"): "cross_kv",
    ("EncDecAttention", "o"): "cross_o",
    ("DenseReluDense", "wi"): "wi",
    ("DenseReluDense", "wi_0"): "wi",
    ("DenseReluDense", "wo"): "wo",
}
"""Module and projection of the first source -> what the packed MatMul is called."""
EMBEDDING, OUTPUT = "embedding", "lm_head"


@dataclass(frozen=True)
class QuantizationPoint:
    """One weight and its input.

    ``key`` is its expression's key (the matrix is [in, out]); ``sources`` are the checkpoint tensors it is packed from;
    ``graph`` runs it. ``block`` is ``encoder.block.3``, empty for what belongs to no layer. In the graph the input is
    ``shrink`` times the checkpoint's: the rescale divides an FFN's hidden state.
    """

    name: str
    graph: str
    key: str
    sources: tuple[str, ...]
    shape: tuple[int, int]
    shrink: float = 1.0

    @property
    def role(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def block(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def modules(self) -> tuple[str, ...]:
        """The weights' modules relative to the block: ``layer.0.SelfAttention.q``, ..."""
        return tuple(source.removeprefix(f"{self.block}.").removesuffix(".weight") for source in self.sources)

    @property
    def parameters(self) -> int:
        return self.shape[0] * self.shape[1]

    def scheme(self, precision: Precision) -> Scheme | None:
        """How ``precision`` quantizes the weight, as ``quantize_weights`` does; None where it cannot."""
        if TABLE in self.sources:
            return table_scheme(precision)
        return scheme_for(precision, *self.shape, rounded=self.graph in precision.activations)


def find_points(graphs: Graphs) -> tuple[QuantizationPoint, ...]:
    """Every point of encoder and decoder in the order they run, the embedding first."""
    models = {"encoder": graphs.encoder} | ({} if graphs.decoder is None else {"decoder": graphs.decoder})
    points = {point.name: point for name, model in models.items() for point in _points(name, model)}
    return tuple(sorted(points.values(), key=lambda point: point.name != EMBEDDING))


def _points(graph: str, model: ir.Model) -> Iterator[QuantizationPoint]:
    shrink = 1.0
    for node in model.graph:
        expression = matrix_of(node)
        if expression is None:
            continue
        rows, columns = expression.shape
        sources = tuple(source.name for source in expression.sources)
        point = QuantizationPoint(point_name(node, expression), graph, expression.key, sources, (rows, columns))
        if point.role == "wi":
            shrink = expression.sources[-1].scale
        yield replace(point, shrink=shrink) if point.role == "wo" else point


def matrix_of(node: ir.Node) -> StackedWeight | None:
    """The expression of a node's weight: [in, out] of a MatMul or Gemm, [vocab, d_model] of the token table.

    None where it has none that may be quantized.
    """
    place = {"MatMul": 1, "Gemm": 1, "Gather": 0}.get(node.op_type)
    weight = None if place is None else node.inputs[place]
    tensor = None if weight is None else weight.const_value
    if not isinstance(tensor, PlannedTensor) or not isinstance(tensor.expression, StackedWeight):
        return None
    if is_behind_pooling(tensor.expression):
        return None
    return tensor.expression.transpose() if node.op_type == "Gemm" else tensor.expression


def point_name(node: ir.Node, expression: StackedWeight) -> str:
    """What the point of this node and its expression is called."""
    source = expression.sources[0].name
    if source in (TABLE, "lm_head.weight"):
        return EMBEDDING if node.op_type == "Gather" else OUTPUT
    stack, block, layer, *_, module, projection, _ = source.split(".")
    return f"{stack}.{block}.{layer}.{ROLES[module, projection]}"

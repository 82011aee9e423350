"""What a graph costs, counted on the graph itself; the figures at given sizes are ``t5edge.bundle.costs``'s."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx_ir as ir

from t5edge.bundle.costs import GatheredTable, GraphCosts
from t5edge.kernels.roles import AttentionNode, attentions

PRODUCTS = ("MatMul", "Gemm", "MatMulNBits")
LOOKED_THROUGH = ("DequantizeLinear", "Cast", "Transpose", "Reshape")
"""Operators between a stored matrix and its product."""


def read_costs(path: Path) -> GraphCosts:
    """The costs of the graph in a file."""
    return graph_costs(ir.load(path))


def graph_costs(model: ir.Model) -> GraphCosts:
    """Operator counts, weights, products and attentions of one graph.

    Products are MatMul, Gemm and attentions, which is all but a few per cent.
    """
    graph = model.graph
    counts = Counter(node.op_type for node in graph)
    products = [weight for node in graph if node.op_type in PRODUCTS and (weight := _weight(node)) is not None]
    axes = Counter(_key_axis(graph, attention) for attention in attentions(graph))
    read, gathered = 0, []
    for node in graph:
        for index, value in enumerate(node.inputs):
            if value is None or value.const_value is None:
                continue
            if node.op_type == "Gather" and index == 0:
                gathered.append(_table(value.const_value))
            else:
                read += value.const_value.nbytes
    return GraphCosts(
        nodes=sum(counts.values()),
        operators=dict(counts.most_common()),
        token_axis="target" if _has_cross_mask(graph) else "source",
        matmul_elements=sum(weight.size for weight in products),
        attention_width=_attention_width(graph) if axes else 0,
        attentions=dict(axes),
        bytes_read=read,
        gathered=tuple(gathered),
    )


def _has_cross_mask(graph: ir.Graph) -> bool:
    return any(value.name == "encoder_attention_mask" for value in graph.inputs)


def _weight(node: ir.Node) -> ir.TensorProtocol | None:
    """The matrix behind a product: an initializer, or one behind DequantizeLinear (and a cast or transpose)."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    while value is not None and value.const_value is None and value.producer() is not None:
        producer = value.producer()
        if producer is None or producer.op_type not in LOOKED_THROUGH:
            return None
        value = producer.inputs[0]
    return None if value is None else value.const_value


def _table(tensor: ir.TensorProtocol) -> GatheredTable:
    return GatheredTable(tensor.nbytes, tensor.nbytes // max(1, int(tensor.shape[0])))  # type: ignore[arg-type]


def _key_axis(graph: ir.Graph, attention: AttentionNode) -> str:
    """The axis of an attention's keys: in a decoder those of the source are an input, its own are computed."""
    if not _has_cross_mask(graph) or attention.key.producer() is None:
        return "source"
    return "past + target"


def _attention_width(graph: ir.Graph) -> int:
    """Heads times d_kv: of a port with keys [batch, heads, length, d_kv], or of the matrix behind an attention."""
    port = next((v for v in (*graph.inputs, *graph.outputs) if v.name and v.name.endswith(".key")), None)
    if port is None:
        return _rows_behind(next(attentions(graph)).out)
    assert port.shape is not None
    return int(port.shape[1]) * int(port.shape[3])  # type: ignore[arg-type]


def _rows_behind(value: ir.Value) -> int:
    """Rows [in] of the matrix of the first product that reads ``value``."""
    node = next(iter(value.uses())).node
    while node.op_type not in PRODUCTS:
        node = next(iter(node.outputs[0].uses())).node
    weight = _weight(node)
    assert weight is not None
    return int(weight.shape[0])  # type: ignore[arg-type]

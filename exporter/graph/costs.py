"""What a graph costs: operators, weight bytes, floating-point operations at given sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir


def graph_costs(path: Path, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Operator counts, bytes of weights read per run, and FLOPs of one run at ``sizes``.

    FLOPs count the multiplications and additions of MatMul, Gemm and Attention (two per multiply-add), which is all
    but a few per cent. Weights behind a Gather count the rows that are read.
    """
    graph = ir.load(path).graph
    counts = Counter(node.op_type for node in graph)
    tokens = sizes["batch"] * (sizes["target"] if "encoder_attention_mask" in _names(graph) else sizes["source"])
    weight_bytes = flops = 0
    for node in graph:
        weight = _weight(node)
        if node.op_type in ("MatMul", "Gemm", "MatMulNBits") and weight is not None:
            flops += 2 * tokens * int(np.prod(weight.shape.numpy()))
        if node.op_type == "Attention":
            flops += _attention_flops(graph, node, sizes)
        for value in node.inputs:
            if value is not None and value.const_value is not None:
                weight_bytes += _bytes_read(node, value, tokens)
    return {
        "nodes": sum(counts.values()),
        "operators": dict(counts.most_common()),
        "weight_bytes": weight_bytes,
        "flops": flops,
    }


def _names(graph: ir.Graph) -> set[str | None]:
    return {value.name for value in graph.inputs}


def _weight(node: ir.Node) -> ir.TensorProtocol | None:
    """The matrix behind a MatMul: an initializer, or one behind DequantizeLinear (and a cast or transpose)."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    while value is not None and value.const_value is None and value.producer() is not None:
        producer = value.producer()
        if producer is None or producer.op_type not in ("DequantizeLinear", "Cast", "Transpose", "Reshape"):
            return None
        value = producer.inputs[0]
    return None if value is None else value.const_value


def _attention_flops(graph: ir.Graph, node: ir.Node, sizes: Mapping[str, int]) -> int:
    """Q @ k^T and weights @ v."""
    cached = next((v for v in graph.inputs if v.name and v.name.endswith("key")), None)
    cross = next((v for v in (*graph.inputs, *graph.outputs) if v.name and v.name.endswith("encoder.key")), None)
    port = cached or cross
    assert port is not None
    assert port.shape is not None
    heads, d_kv = int(port.shape[1]), int(port.shape[3])  # type: ignore[arg-type]
    if cached is None:
        queries = keys = sizes["source"]
    else:
        key = node.inputs[1]
        from_port = key is not None and key.producer() is None
        queries, keys = sizes["target"], sizes["source"] if from_port else sizes["past"] + sizes["target"]
    return 4 * sizes["batch"] * heads * queries * keys * d_kv


def _bytes_read(node: ir.Node, value: ir.Value, tokens: int) -> int:
    tensor = value.const_value
    assert tensor is not None
    if node.op_type == "Gather" and value is node.inputs[0]:
        row = tensor.nbytes // max(1, int(tensor.shape[0]))  # type: ignore[arg-type]
        return min(tensor.nbytes, tokens * row)
    return tensor.nbytes

"""Projections into heads that share one input: found as a group, packed into one MatMul, split again.

    x : [batch, seq, d_model]   w_i : [d_model, heads * d_kv]   out_i : [batch, heads, seq, d_kv]
    before : transpose(reshape(x @ w_i, computed shape)) for each i
    after  : out_1, .., out_n = split(transpose(reshape(x @ [w_1 | .. | w_n], [0, 0, n * heads, d_kv])), over heads)

Self-attention has n = 3, the query of cross-attention n = 1, the cross keys and values n = 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from t5edge.bundle.architecture import Architecture
from t5edge.kernels.block import Block
from t5edge.kernels.fusion import FusionResult
from t5edge.kernels.values import as_int64, constant_value, scalar
from t5edge.kernels.weights import StackedWeight, expression_of, planned_value


@dataclass(frozen=True)
class HeadProjection:
    """One MatMul -> Reshape -> Transpose chain into heads."""

    matmul: ir.Node
    reshape: ir.Node
    transpose: ir.Node
    expression: StackedWeight


def pack_projections(block: Block, architecture: Architecture, count: int) -> FusionResult:
    """Replace every group of exactly ``count`` head projections of one input by a packed one."""
    result = FusionResult()
    groups: dict[ir.Value, list[HeadProjection]] = {}
    for node in block.graph:
        found = _head_projection(node, architecture, result)
        if found is not None and found.matmul.inputs[0] is not None:
            groups.setdefault(found.matmul.inputs[0], []).append(found)
    for x, group in groups.items():
        if len(group) == count:
            _pack(block.graph, x, group, architecture)
            result.matched += 1
        else:
            result.refusals.append(f"{len(group)} projections share an input, {count} were expected")
    return result


def _head_projection(node: ir.Node, architecture: Architecture, result: FusionResult) -> HeadProjection | None:
    expression = expression_of(node.inputs[1]) if node.op_type == "MatMul" else None
    if not isinstance(expression, StackedWeight):
        return None
    reshape = _only_user(node, "Reshape")
    transpose = _only_user(reshape, "Transpose") if reshape is not None else None
    if reshape is None or transpose is None:
        return None
    if list(transpose.attributes["perm"].as_ints()) != [0, 2, 1, 3]:
        result.refusals.append(f"{expression.key}: the transpose after it does not move the heads")
        return None
    if not _splits_into_heads(reshape, architecture.d_kv):
        result.refusals.append(f"{expression.key}: reshaped into heads of another size than d_kv = {architecture.d_kv}")
        return None
    if expression.sources[0].name.split(".")[-2] not in ("q", "k", "v"):
        result.refusals.append(f"{expression.key}: not a query, key or value projection")
        return None
    return HeadProjection(node, reshape, transpose, expression)


def _only_user(node: ir.Node, op_type: str) -> ir.Node | None:
    users = [use.node for use in node.outputs[0].uses()]
    return users[0] if len(users) == 1 and users[0].op_type == op_type else None


def _splits_into_heads(reshape: ir.Node, d_kv: int) -> bool:
    """Whether the shape, computed in the trace as Concat(batch, seq, -1, d_kv), ends in ``d_kv``."""
    target = reshape.inputs[1]
    concat = None if target is None else target.producer()
    if concat is None or concat.op_type != "Concat" or len(concat.inputs) != 4:
        return False
    return scalar(concat.inputs[3]) == d_kv


def _pack(graph: ir.Graph, x: ir.Value, group: list[HeadProjection], architecture: Architecture) -> None:
    expression = group[0].expression
    for other in group[1:]:
        expression = expression.join(other.expression)
    weight = planned_value(expression, ir.DataType.FLOAT, f"packed.{expression.key}")
    graph.register_initializer(weight)
    tape = ir.tape.Tape()
    name = f"split_{len(group)}_heads"
    if name not in graph.initializers:
        sizes = as_int64(0, 0, len(group) * architecture.num_heads, architecture.d_kv)
        graph.initializers[name] = constant_value(sizes, name)
    heads = tape.op("Reshape", [tape.op("MatMul", [x, weight]), graph.initializers[name]])
    parts = [tape.op("Transpose", [heads], {"perm": [0, 2, 1, 3]})]
    if len(group) > 1:
        split = {"axis": 1, "num_outputs": len(group)}
        parts = list(tape.op_multi_out("Split", parts, split, num_outputs=len(group)))
    old_nodes = [node for found in group for node in (found.transpose, found.reshape, found.matmul)]
    old_values = [found.transpose.outputs[0] for found in group]
    ir.convenience.replace_nodes_and_values(graph, group[0].matmul, old_nodes, tape.nodes, old_values, parts)

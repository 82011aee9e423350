"""Norms and attentions of a graph, whichever form it is in: one fused operator each, or ``primitives``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class NormNode:
    """An RMS norm over the last axis of ``x``."""

    name: str
    x: ir.Value
    epsilon: float


@dataclass(frozen=True)
class AttentionNode:
    """softmax(q k^T + mask) v; ``out`` [batch, heads, target, d_kv] is what it gives."""

    name: str
    key: ir.Value
    mask: ir.Value
    out: ir.Value


def norms(nodes: Iterable[ir.Node]) -> Iterator[NormNode]:
    """In order; primitives are recognised by their last part, the root of a mean of squares and a constant."""
    for node in nodes:
        name = node.name or ""
        if node.op_type == "RMSNormalization":
            yield NormNode(name, _given(node, 0), node.attributes.get_float("epsilon", 1e-5))
        elif node.op_type == "Sqrt" and (total := node.inputs[0]) is not None and _made_by(total, "Add") is not None:
            add = _made_by(total, "Add")
            assert add is not None
            mean = _made_by(_given(add, 0), "ReduceMean")
            epsilon = ir.convenience.get_const_tensor(_given(add, 1))
            if mean is not None and epsilon is not None:
                x = _before(_given(_producer(_given(mean, 0), "Pow"), 0), "Cast")
                yield NormNode(name.rpartition("/")[0], x, float(epsilon.numpy()))


def attentions(nodes: Iterable[ir.Node]) -> Iterator[AttentionNode]:
    """In order; in portable graphs every softmax is that of an attention."""
    for node in nodes:
        name = node.name or ""
        if node.op_type == "Attention":
            yield AttentionNode(name, _given(node, 1), _given(node, 3), node.outputs[0])
        elif node.op_type == "Softmax":
            add = _producer(_before(_given(node, 0), "Cast"), "Add")
            scores = _producer(_before(_given(add, 0), "Cast"), "MatMul")
            key = _given(_producer(_given(scores, 1), "Transpose"), 0)
            (after,) = node.outputs[0].consumers()
            product = after if after.op_type == "MatMul" else after.outputs[0].consumers()[0]
            yield AttentionNode(name.rpartition("/")[0], key, _before(_given(add, 1), "Cast"), product.outputs[0])


def _given(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _made_by(value: ir.Value, op_type: str) -> ir.Node | None:
    node = value.producer()
    return node if node is not None and node.op_type == op_type else None


def _producer(value: ir.Value, op_type: str) -> ir.Node:
    node = _made_by(value, op_type)
    assert node is not None, f"{value.name} is not the result of {op_type}"
    return node


def _before(value: ir.Value, op_type: str) -> ir.Value:
    """``value``, or what the ``op_type`` that made it was given."""
    node = _made_by(value, op_type)
    return value if node is None else _given(node, 0)

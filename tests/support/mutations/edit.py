"""Small changes of a graph: a node in front of another, an input in place of another."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import onnx_ir as ir

_NUMBERS = count()


def fresh_name(op_type: str) -> str:
    """A name that no other value has."""
    return f"mutation/{op_type}_{next(_NUMBERS)}"


def node_of(value: ir.Value | None) -> ir.Node:
    """The node that makes a value."""
    node = None if value is None else value.producer()
    assert node is not None
    return node


def input_of(node: ir.Node, place: int) -> ir.Value:
    value = node.inputs[place]
    assert value is not None
    return value


def nodes(graph: ir.Graph, op_type: str, name: str = "") -> list[ir.Node]:
    """Nodes of a type whose names begin with ``name``, in order."""
    return [node for node in graph if node.op_type == op_type and (node.name or "").startswith(name)]


def insert(at: ir.Node, op_type: str, *inputs: ir.Value | np.ndarray, **attributes: Any) -> ir.Value:
    """The output of a new node in front of ``at``; arrays become constants."""
    graph = at.graph
    assert graph is not None
    values = [value if isinstance(value, ir.Value) else constant(at, value) for value in inputs]
    node = ir.node(op_type, values, attributes)
    node.outputs[0].name = fresh_name(op_type)
    graph.insert_before(at, node)
    return node.outputs[0]


def constant(at: ir.Node, array: np.ndarray) -> ir.Value:
    """A constant of the graph of ``at``, stored in it as the others are."""
    graph = at.graph
    assert graph is not None
    tensor = ir.tensor(array, name=fresh_name("constant"))
    value = ir.Value(
        name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def long(*values: int) -> np.ndarray:
    """int64, a scalar of one value."""
    return np.array(values if len(values) > 1 else values[0], np.int64)


def after_output(graph: ir.Graph, name: str, op_type: str, operand: np.ndarray) -> None:
    """An operator with one constant operand on a graph's output."""
    (place,) = [place for place, value in enumerate(graph.outputs) if value.name == name]
    old = graph.outputs[place]
    producer = node_of(old)
    node = ir.node(op_type, [old, ir.Value()], {})
    old.name = f"{name}/before"
    node.outputs[0].name = name
    node.outputs[0].type, node.outputs[0].shape = old.type, old.shape
    old.type = old.shape = None
    graph.insert_after(producer, node)
    node.replace_input_with(1, constant(node, operand))
    graph.outputs[place] = node.outputs[0]


def bypass(node: ir.Node) -> None:
    """The node passes its first input on."""
    graph = node.graph
    assert graph is not None
    identity = ir.node("Identity", [node.inputs[0]])
    graph.insert_before(node, identity)
    out, new = node.outputs[0], identity.outputs[0]
    name, new.type, new.shape = out.name, out.type, out.shape
    out.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    new.name = name


def self_attention(graph: ir.Graph) -> Iterator[ir.Node]:
    """The decoder's self-attention nodes in the order of layers."""
    yield from (node for node in nodes(graph, "Attention") if (input_of(node, 1).name or "").startswith("present."))


def cross_attention(graph: ir.Graph) -> Iterator[ir.Node]:
    """The decoder's cross-attention nodes in the order of layers."""
    yield from (node for node in nodes(graph, "Attention") if ".encoder." in (input_of(node, 1).name or ""))

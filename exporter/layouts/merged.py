"""Both decoder steps in one graph, as transformers.js reads it: an ``If`` over ``use_cache_branch``.

    before : decoder_model (first step)   decoder_with_past_model (later steps)
    after  : If(use_cache_branch): later steps, else first step

Weights are initializers of the outer graph, except what DequantizeLinear reads: ONNX Runtime 1.31 fuses quantized
MatMuls only with weights of the same graph, and fails to load others. The bytes in the file are the same.
Later steps return cross keys and values of size 0, and clients keep those of the first step (optimum's convention).

Source: ``optimum.onnx.graph_transformations.merge_decoders``; transformers.js 4.3.1, ``src/models/modeling_utils.js``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from t5edge.kernels.weights import PlannedTensor

BRANCH = "use_cache_branch"
HEAD_AXIS = 3
"""Axis of d_kv in keys and values."""


def merge_decoders(first: ir.Model, later: ir.Model, guessed_d_kv: int) -> ir.Model:
    """One model of both; the given ones stay as they are.

    ``guessed_d_kv`` is d_model // num_heads: optimum's client makes the empty cache of the first step with it, so where
    d_kv differs the axis is left open.
    """
    first, later = first.clone(), later.clone()
    inputs = _inputs(first.graph, later.graph, guessed_d_kv)
    grown = {value.name: value for value in later.graph.outputs}
    outputs = [_like(grown.get(value.name, value), value.name) for value in first.graph.outputs]
    weights: dict[str, ir.Value] = {}
    branches = {
        "then_branch": _branch(later.graph, "later", outputs, inputs, weights),
        "else_branch": _branch(first.graph, "first", outputs, inputs, weights),
    }
    choice = ir.node("If", [inputs[BRANCH]], branches, outputs=outputs, name="decoder/If")
    graph = ir.Graph(
        inputs=list(inputs.values()),
        outputs=outputs,
        nodes=[choice],
        initializers=list(weights.values()),
        opset_imports=dict(first.graph.opset_imports),
        name="decoder",
    )
    return ir.Model(graph, ir_version=first.ir_version, producer_name=first.producer_name)


def _inputs(first: ir.Graph, later: ir.Graph, guessed_d_kv: int) -> dict[str, ir.Value]:
    """The inputs of both, each once, and the switch."""
    merged: dict[str, ir.Value] = {}
    for value in (*first.inputs, *later.inputs):
        assert value.name is not None
        merged.setdefault(value.name, _like(value, value.name))
    for name, value in merged.items():
        if name.startswith("past_key_values.") and value.shape is not None and value.shape[HEAD_AXIS] != guessed_d_kv:
            value.shape = ir.Shape([*value.shape[:HEAD_AXIS], "d_kv"])
    merged[BRANCH] = ir.val(BRANCH, ir.DataType.BOOL, [1])
    return merged


def _like(value: ir.Value, name: str | None) -> ir.Value:
    return ir.val(name, type=value.type, shape=value.shape)


def _branch(
    graph: ir.Graph,
    prefix: str,
    wanted: Sequence[ir.Value],
    inputs: Mapping[str, ir.Value],
    weights: dict[str, ir.Value],
) -> ir.Graph:
    """``graph`` as a branch that reads the outer ``inputs`` and ``weights``, to which it adds its own."""
    ir.convenience.replace_all_uses_with(list(graph.inputs), [inputs[value.name or ""] for value in graph.inputs])
    graph.inputs.clear()
    _share_weights(graph, weights)
    made = {value.name: value for value in graph.outputs}
    graph.outputs.clear()
    for node in graph:
        node.name = f"{prefix}/{node.name}"
        for value in node.outputs:
            value.name = f"{prefix}/{value.name}"
    absent = {value.name: _nothing(value, prefix) for value in wanted if value.name not in made}
    graph.extend(absent.values())
    made |= {name: node.outputs[0] for name, node in absent.items()}
    graph.outputs.extend(made[value.name] for value in wanted)
    graph.name = f"{prefix}_step"
    return graph


def _share_weights(graph: ir.Graph, weights: dict[str, ir.Value]) -> None:
    """Move the initializers of ``graph`` to ``weights``, each name once, but for those that must stay."""
    for name, value in list(graph.initializers.items()):
        if any(use.node.op_type == "DequantizeLinear" for use in value.uses()):
            continue
        graph.initializers.pop(name)
        shared = weights.setdefault(name, value)
        if shared is not value:
            assert _equal(shared.const_value, value.const_value), f"{name} differs between the steps"
            ir.convenience.replace_all_uses_with(value, shared)


def _equal(left: ir.TensorProtocol | None, right: ir.TensorProtocol | None) -> bool:
    """Whether two initializers hold the same numbers; weights by their expression, or by their place in the file."""
    assert left is not None
    assert right is not None
    if isinstance(left, PlannedTensor) and isinstance(right, PlannedTensor):
        return (left.expression.key, left.dtype) == (right.expression.key, right.dtype)
    if isinstance(left, ir.ExternalTensor) and isinstance(right, ir.ExternalTensor):
        return (left.location, left.offset, left.length) == (right.location, right.offset, right.length)
    return np.array_equal(left.numpy(), right.numpy())


def _nothing(value: ir.Value, prefix: str) -> ir.Node:
    """A constant without elements for an output that this step does not make, [0, heads, 1, d_kv]."""
    assert value.dtype is not None
    assert value.shape is not None
    heads, d_kv = value.shape[1], value.shape[HEAD_AXIS]
    assert isinstance(heads, int)
    assert isinstance(d_kv, int)
    tensor = ir.tensor(np.zeros((0, heads, 1, d_kv), value.dtype.numpy()))
    name = f"{prefix}/{value.name}"
    return ir.node("Constant", [], {"value": tensor}, outputs=[ir.val(name)], name=f"{name}/nothing")

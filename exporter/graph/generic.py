"""One trace for every size: a block is traced with sizes that nothing else in it equals, which are then exchanged.

A block of one structure (activation, gate) is the same nodes whatever its width; sizes stand in shapes and in the
constants of Reshape. So what takes seconds is done once per structure, not once per model.

Batch and lengths are traced as such sizes too, since torch takes three times as long over symbolic ones; ``open_axes``
makes axes of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from t5edge.bundle.architecture import Architecture
from t5edge.kernels.fusion import FusionError

SIZES = {"d_model": 10_007, "num_heads": 503, "d_kv": 1_009, "d_ff": 20_011}
"""Primes, and their products differ: a number of a traced block is one of these sizes exactly where it is written."""
AXES = {"batch": 1_301, "source": 1_303, "target": 1_307, "past": 1_319}
"""Of the example inputs, alike; past and new keys together are ``past + target``."""


def generic(architecture: Architecture) -> Architecture:
    """``architecture`` with ``SIZES``; only for modules on the meta device."""
    sizes: dict[str, Any] = {**SIZES}
    return replace(architecture, **sizes)


def open_axes(model: ir.Model) -> None:
    """Let a block traced with ``AXES`` take any batch and lengths, in place.

    Shapes name them. Reshape takes them from the axis of its input at the same place, which is what 0 means there.

    Raises:
        FusionError: a number of ``AXES`` stands anywhere else.
    """
    names: dict[int, str] = {number: name for name, number in AXES.items()}
    names[AXES["past"] + AXES["target"]] = "past + target"
    kept = ir.node("Constant", [], {"value_ints": [0]})
    model.graph.insert_before(model.graph[0], kept)
    for node in model.graph:
        if node.op_type == "Reshape":
            _keep_axes(node, kept.outputs[0], names)
    common_passes.RemoveUnusedNodesPass()(model)
    left = {number for node in model.graph for number in _numbers(node)} & names.keys()
    if left:
        raise FusionError(f"a traced block computes with {names[min(left)]}: transformers' block changed")
    for value in _values(model.graph):
        _exchange_axes(value, names)


def _keep_axes(reshape: ir.Node, kept: ir.Value, names: Mapping[int, str]) -> None:
    """0 for each axis of ``names`` in a shape that is put together of constants, where the input has the same."""
    data, shape = reshape.inputs
    concat = None if shape is None else shape.producer()
    if concat is None or concat.op_type != "Concat" or data is None or data.shape is None:
        return
    for place, part in enumerate(concat.inputs):
        producer = None if part is None else part.producer()
        numbers = [] if producer is None else _numbers(producer)
        same = place < len(data.shape) and numbers == [data.shape[place]]
        if same and numbers[0] in names:
            concat.replace_input_with(place, kept)
            reshape.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)


def _numbers(node: ir.Node) -> list[int]:
    """Every integer that an attribute of a node holds."""
    found: list[int] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.INT:
            found.append(attribute.as_int())
        elif attribute.type == ir.AttributeType.INTS:
            found.extend(attribute.as_ints())
        elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == ir.DataType.INT64:
            found.extend(attribute.as_tensor().numpy().ravel().tolist())
    return found


def _exchange_axes(value: ir.Value, sizes: Mapping[int, int] | Mapping[int, str]) -> None:
    if value.shape is not None:
        value.shape = ir.Shape([sizes.get(axis, axis) if isinstance(axis, int) else axis for axis in value.shape])


def resize(model: ir.Model, architecture: Architecture) -> None:
    """Exchange ``SIZES`` in a traced block for those of ``architecture``, in place."""
    sizes = {number: getattr(architecture, name) for name, number in SIZES.items()}
    sizes[SIZES["num_heads"] * SIZES["d_kv"]] = architecture.num_heads * architecture.d_kv
    for value in _values(model.graph):
        _exchange_axes(value, sizes)
    for node in model.graph:
        for attribute in list(node.attributes.values()):
            if isinstance(attribute, ir.Attr):
                node.attributes[attribute.name] = _resized(attribute, sizes)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from (*graph.inputs, *graph.initializers.values())
    for node in graph:
        yield from node.outputs


def _resized(attribute: ir.Attr, sizes: Mapping[int, int]) -> ir.Attr:
    """Integers, lists of them and int64 tensors; everything else as it is."""
    if attribute.type == ir.AttributeType.INT:
        return ir.AttrInt64(attribute.name, sizes.get(attribute.as_int(), attribute.as_int()))
    if attribute.type == ir.AttributeType.INTS:
        return ir.AttrInt64s(attribute.name, [sizes.get(number, number) for number in attribute.as_ints()])
    if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == ir.DataType.INT64:
        numbers = attribute.as_tensor().numpy()
        exchanged = np.array([sizes.get(int(number), int(number)) for number in numbers.ravel()], np.int64)
        return ir.AttrTensor(attribute.name, ir.tensor(exchanged.reshape(numbers.shape)))
    return attribute

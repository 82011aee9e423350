"""One trace for every size: a block is traced with sizes that nothing else in it equals, which are then exchanged.

A block of one structure (activation, gate) is the same nodes whatever its width; sizes stand in shapes and in the
constants of Reshape. So what takes seconds is done once per structure, not once per model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from t5edge.bundle.architecture import Architecture

SIZES = {"d_model": 10_007, "num_heads": 503, "d_kv": 1_009, "d_ff": 20_011}
"""Primes, and their products differ: a number of a traced block is one of these sizes exactly where it is written."""


def generic(architecture: Architecture) -> Architecture:
    """``architecture`` with ``SIZES``; only for modules on the meta device."""
    sizes: dict[str, Any] = {**SIZES}
    return replace(architecture, **sizes)


def resize(model: ir.Model, architecture: Architecture) -> None:
    """Exchange ``SIZES`` in a traced block for those of ``architecture``, in place."""
    sizes = {number: getattr(architecture, name) for name, number in SIZES.items()}
    sizes[SIZES["num_heads"] * SIZES["d_kv"]] = architecture.num_heads * architecture.d_kv
    for value in _values(model.graph):
        if value.shape is not None:
            axes = [sizes.get(axis, axis) if isinstance(axis, int) else axis for axis in value.shape]
            value.shape = ir.Shape(axes)
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

"""Traced blocks: their ports and weights."""

from __future__ import annotations

import onnx_ir as ir

from support.tiny_models import find_tiny_model
from t5edge.exporter.graph import trace
from t5edge.kernels.weights import expression_of

FACTS = find_tiny_model("v1.1-tiny").architecture


def axes(value: ir.Value) -> list[str | int]:
    assert value.shape is not None
    return [axis if isinstance(axis, int) else str(axis) for axis in value.shape]


def test_an_encoder_block_has_the_documented_ports_and_plans_its_weights() -> None:
    block = trace.trace_block(FACTS, "encoder")
    hidden, bias = block.graph.inputs
    batch, source, width = axes(hidden)
    assert width == FACTS.d_model
    assert axes(bias) == [batch, FACTS.num_heads, source, source]
    assert axes(block.graph.outputs[0])[2] == FACTS.d_model
    expressions = [expression_of(value) for value in block.graph.initializers.values()]
    names = {source.name for e in expressions if e is not None for source in e.sources}  # type: ignore[attr-defined]
    layers = {"layer.0.SelfAttention": "qkvo", "layer.1.DenseReluDense": ("wi_0", "wi_1", "wo")}
    expected = {f"{layer}.{name}.weight" for layer, parts in layers.items() for name in parts}
    assert names == expected | {f"layer.{index}.layer_norm.weight" for index in (0, 1)}


def test_what_says_nothing_is_gone() -> None:
    counts = trace.trace_block(FACTS, "decoder").operator_counts()
    assert not {"Identity", "Dropout"} & counts.keys()
    assert counts["MatMul"] > 0

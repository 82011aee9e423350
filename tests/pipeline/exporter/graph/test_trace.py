"""Traced blocks: what they depend on, and that a stored one is the traced one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

from support.tiny_models import find_tiny_model
from support.traces import from_bytes, kept_in, to_bytes
from t5edge.exporter.graph import trace
from t5edge.kernels.block import BlockKind
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


@pytest.mark.parametrize("kind", trace.BLOCK_KINDS)
def test_a_stored_block_is_the_traced_one(kind: BlockKind) -> None:
    block = trace.trace_block(FACTS, kind)
    data = to_bytes(block.model)
    again = from_bytes(data)
    assert to_bytes(again) == data
    assert [(node.op_type, node.name) for node in again.graph] == [(node.op_type, node.name) for node in block.graph]


def test_depth_vocabulary_and_ties_change_no_block(tmp_path: Path) -> None:
    """What ``support.traces`` relies on: blocks of architectures that differ in these alone are traced once."""
    asked = []

    def tracer(architecture: object, kind: BlockKind) -> object:
        asked.append(architecture)
        return trace.trace_block(FACTS, kind)

    kept = kept_in(tmp_path, tracer)  # type: ignore[arg-type]
    other = replace(FACTS, vocab_size=501, encoder_layers=7, tied=True, scale_logits=True, per_layer_bias=True)
    assert [kept(facts, "cross_kv").operator_counts() for facts in (FACTS, other)]
    assert len(asked) == 1
    kept(replace(FACTS, d_model=48), "cross_kv")
    assert len(asked) == 2

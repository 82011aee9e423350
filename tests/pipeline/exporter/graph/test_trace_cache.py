from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

from t5edge.exporter.family.variants import find_variant
from t5edge.exporter.graph import trace
from t5edge.exporter.graph.generic import generic
from t5edge.exporter.graph.position_buckets import bucket_table
from t5edge.exporter.graph.trace_cache import cached_numbers, cached_trace
from t5edge.kernels.block import BlockKind
from t5edge.kernels.weights import PlannedTensor

FACTS = find_variant("google/t5-efficient-tiny").architecture


def said(attribute: ir.Attr) -> str:
    return str(attribute.as_tensor().numpy() if attribute.type == ir.AttributeType.TENSOR else attribute.value)


def described(model: ir.Model) -> list[object]:
    """Nodes with their inputs, outputs and attributes, and what every weight is."""
    nodes = [
        (
            node.op_type,
            [None if value is None else value.name for value in node.inputs],
            [value.name for value in node.outputs],
            {name: said(attribute) for name, attribute in node.attributes.items()},
        )
        for node in model.graph
    ]
    weights = {}
    for name, value in model.graph.initializers.items():
        assert isinstance(value.const_value, PlannedTensor)
        weights[name] = value.const_value.expression
    ports = [(value.name, value.dtype, str(value.shape)) for value in (*model.graph.inputs, *model.graph.outputs)]
    return [nodes, weights, ports]


def test_depth_vocabulary_ties_and_sizes_need_no_trace_of_their_own(
    caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = trace._traced(generic(FACTS), "cross_kv")
    monkeypatch.setattr(trace, "_traced", lambda *_: once)
    monkeypatch.setattr(trace, "cached_trace", cached_trace)
    other = {"vocab_size": 501, "encoder_layers": 7, "tied": True, "scale_logits": True, "per_layer_bias": True}
    for facts in (FACTS, replace(FACTS, **other), replace(FACTS, d_model=48, num_heads=1, d_kv=7, d_ff=9)):
        trace.trace_block(facts, "cross_kv")
    assert len(files(caches)) == 1
    trace.trace_block(replace(FACTS, gated=True), "cross_kv")
    assert len(files(caches)) == 2


def files(folder: Path) -> list[Path]:
    return sorted((folder / "t5edge" / "traces").glob("*"))


@pytest.mark.parametrize("kind", ["decoder", "cross_kv"])
def test_a_block_from_the_cache_is_the_traced_one(
    kind: BlockKind, caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = trace._traced(FACTS, kind)
    monkeypatch.setattr(trace, "_traced", lambda *_: once)
    monkeypatch.setattr(trace, "cached_trace", cached_trace)  # not the one that all tests share
    first = described(trace.trace_block(FACTS, kind).model)
    assert len(files(caches)) == 1
    monkeypatch.setattr(trace, "_traced", lambda *_: pytest.fail("traced again"))
    assert described(trace.trace_block(FACTS, kind).model) == first


def test_another_structure_has_another_place(caches: Path) -> None:
    model = ir.Model(ir.Graph([], [], nodes=[], name="empty", opset_imports={"": 23}), ir_version=10)
    for facts in (FACTS, replace(FACTS, d_ff=FACTS.d_ff + 64), replace(FACTS, encoder_layers=9)):
        cached_trace(facts, "encoder", lambda: model)
    cached_trace(FACTS, "decoder", lambda: model)
    assert len(files(caches)) == 3


def test_a_damaged_file_is_traced_anew_and_an_unwritable_folder_is_no_error(caches: Path) -> None:
    model = ir.Model(ir.Graph([], [], nodes=[], name="empty", opset_imports={"": 23}), ir_version=10)
    cached_trace(FACTS, "encoder", lambda: model)
    (path,) = files(caches)
    path.write_bytes(b"not onnx")
    asked: list[int] = []
    cached_trace(FACTS, "encoder", lambda: asked.append(1) or model)
    cached_trace(FACTS, "encoder", lambda: asked.append(2) or model)
    assert asked == [1]
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("a file where the folder should be")
    assert cached_trace(FACTS, "encoder", lambda: model) is model
    assert cached_numbers("buckets", [1], lambda: (4, 5)) == (4, 5)


def test_numbers_are_computed_once(caches: Path) -> None:
    assert cached_numbers("buckets", [1], lambda: (4, 5)) == (4, 5)
    assert cached_numbers("buckets", [1], lambda: pytest.fail("computed again")) == (4, 5)
    (path,) = files(caches)
    path.write_text('["4"]')
    assert cached_numbers("buckets", [1], lambda: (6,)) == (6,)
    assert bucket_table(32, 128, True) == bucket_table(32, 128, True)

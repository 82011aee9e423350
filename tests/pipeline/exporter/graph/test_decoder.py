"""The decoder graph: shared shapes, tied or separate output layer, names of the nodes."""

from __future__ import annotations

from collections import Counter

import pytest

from support.exports import GATED, RELU, Exports
from t5edge.exporter.graph.assemble import assemble
from t5edge.exporter.graph.rescale import Rescale


@pytest.mark.parametrize(("tiny", "operator"), [(RELU, "Gemm"), (GATED, "MatMul")])
def test_the_output_layer_is_the_table_where_it_is_tied(exports: Exports, tiny: str, operator: str) -> None:
    checkpoint = exports.checkpoint(tiny)
    graph = assemble(checkpoint.architecture, exports.blocks(checkpoint), "float", Rescale()).decoder.graph
    reading = [node for node in graph if (node.name or "").startswith("decoder/head/") and node.op_type == operator]
    assert len(reading) == 1
    tables = {
        value.name for node in graph if node.op_type == "Gather" for value in node.inputs[:1] if value is not None
    }
    assert (reading[0].inputs[1].name in tables) == checkpoint.architecture.tied  # type: ignore[union-attr]


def test_nodes_name_their_layer_and_no_name_occurs_twice(exports: Exports) -> None:
    checkpoint = exports.checkpoint(GATED)
    a = checkpoint.architecture
    graph = assemble(a, exports.blocks(checkpoint), "float", Rescale()).decoder.graph
    names = Counter(node.name for node in graph)
    assert max(names.values()) == 1
    for layer in range(a.decoder_layers):
        own = [node.op_type for node in graph if (node.name or "").startswith(f"decoder.block.{layer}.block/")]
        assert own.count("Attention") == 2

"""Heads in the encoder's graph: what is in it besides the encoder, and what is not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import onnx_ir as ir
import pytest

from support.exports import GATED, Exports
from t5edge.exporter.graph.assemble import assemble
from t5edge.exporter.graph.rescale import Rescale
from t5edge.exporter.graph.weight_expressions import PlainTable
from t5edge.kernels.weights import expression_of


def graph_of(exports: Exports, head: str, labels: int) -> ir.Graph:
    checkpoint = exports.checkpoint(GATED)
    a = checkpoint.architecture
    layers = 0 if head == "tokens" else a.decoder_layers
    alone = replace(a.without_decoder(), head=head, labels=labels, head_layers=layers)
    graphs = assemble(alone, exports.blocks(checkpoint), "float", Rescale())
    assert graphs.decoder is None
    return graphs.encoder.graph


def test_a_head_for_tokens_is_one_matrix_that_is_never_rounded(exports: Exports) -> None:
    graph = graph_of(exports, "tokens", 7)
    assert [(output.name, output.shape) for output in graph.outputs][1] == ("logits", ir.Shape(("batch", "source", 7)))
    tables = {
        entry.key: entry.shape
        for value in graph.initializers.values()
        if (entry := expression_of(value))
        if isinstance(entry, PlainTable)
    }
    assert tables == {"classifier.weight": (7, 104), "classifier.bias": (7,)}
    assert not any(name.startswith("decoder") for name in graph.initializers)


@pytest.mark.parametrize(("head", "outputs"), [("span", ["start_logits", "end_logits"]), ("text", ["logits"])])
def test_a_decoder_below_a_head_has_no_cache(exports: Exports, head: str, outputs: list[str]) -> None:
    a = exports.checkpoint(GATED).architecture
    graph = graph_of(exports, head, 2)
    assert [value.name for value in graph.inputs] == ["input_ids", "attention_mask"]
    assert [value.name for value in graph.outputs] == ["last_hidden_state", *outputs]
    counts = Counter(node.op_type for node in graph)
    assert counts["Attention"] == a.encoder_layers + 2 * a.decoder_layers
    names = [node.name or "" for node in graph]
    assert len(set(names)) == len(names)
    for node in graph:
        if node.op_type == "Concat" and (node.name or "").startswith("decoder.block."):
            assert "cross" in str(node.name), "keys and values are joined to nothing"

"""The encoder graph: one mask for position and padding, cross keys and values of every decoder layer."""

from __future__ import annotations

from collections import Counter

from support.exports import GATED, Exports
from t5edge.exporter.graph.assemble import assemble
from t5edge.exporter.graph.rescale import Rescale


def test_every_attention_reads_one_additive_mask(exports: Exports) -> None:
    checkpoint = exports.checkpoint(GATED)
    a = checkpoint.architecture
    graph = assemble(a, exports.blocks(checkpoint), "float", Rescale()).encoder.graph
    masks = {node.inputs[3] for node in graph if node.op_type == "Attention"}
    assert len(masks) == 1  # T5: one bias for all layers
    producer = next(iter(masks)).producer()
    assert producer is not None
    assert producer.op_type == "Where"
    counts = Counter(node.op_type for node in graph)
    assert counts["Attention"] == a.encoder_layers
    assert counts["RMSNormalization"] == 2 * a.encoder_layers + 1


def test_cross_keys_and_values_come_from_the_last_hidden_state(exports: Exports) -> None:
    checkpoint = exports.checkpoint(GATED)
    a = checkpoint.architecture
    graph = assemble(a, exports.blocks(checkpoint), "float", Rescale()).encoder.graph
    hidden, *cross = graph.outputs
    assert [value.name for value in cross] == [
        f"present.{layer}.encoder.{half}" for layer in range(a.decoder_layers) for half in ("key", "value")
    ]
    readers = {use.node.op_type for use in hidden.uses()}
    assert readers == {"MatMul"}
    assert len(list(hidden.uses())) == a.decoder_layers

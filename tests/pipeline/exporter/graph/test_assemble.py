"""Graphs out of blocks: ports, depth, shared weights, and what a rescale changes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from support.exports import GATED, RELU, Exports
from t5edge.exporter.graph.assemble import Graphs, assemble
from t5edge.exporter.graph.rescale import Rescale, StackScale
from t5edge.kernels.weights import expression_of


def graphs(exports: Exports, tiny: str, compute: str = "float", rescale: Rescale | None = None) -> Graphs:
    checkpoint = exports.checkpoint(tiny)
    return assemble(checkpoint.architecture, exports.blocks(checkpoint), compute, rescale or Rescale())


@pytest.mark.parametrize("compute", ["float", "float16", "bfloat16"])
def test_graphs_have_the_ports_they_state(exports: Exports, compute: str) -> None:
    made = graphs(exports, GATED, compute)
    for model, ports in ((made.encoder, made.encoder_ports), (made.decoder, made.decoder_ports)):
        for values, stated in ((model.graph.inputs, ports.inputs), (model.graph.outputs, ports.outputs)):
            assert [value.name for value in values] == [port.name for port in stated]
            assert [str(value.dtype).lower() for value in values] == [port.dtype for port in stated]


def test_a_layer_more_is_a_copy_more(exports: Exports) -> None:
    checkpoint = exports.checkpoint(GATED)
    blocks = exports.blocks(checkpoint)
    counts = [
        Counter(
            node.op_type
            for node in assemble(replace(a, encoder_layers=depth), blocks, "float", Rescale()).encoder.graph
        )
        for a in (checkpoint.architecture,)
        for depth in (1, 2, 3)
    ]
    assert counts[1] - counts[0] == counts[2] - counts[1]
    assert (counts[1] - counts[0])["Attention"] == 1


def test_both_graphs_name_the_checkpoints_tensors(exports: Exports) -> None:
    for tiny in (GATED, RELU):
        made = graphs(exports, tiny)
        keys = [
            expression.key
            for _, model in made.items()
            for value in model.graph.initializers.values()
            if (expression := expression_of(value)) is not None
        ]
        named = " ".join(keys)
        missing = [name for name in exports.checkpoint(tiny).names() if name not in named]
        assert missing == []


def test_a_rescale_changes_the_keys_of_what_it_scales(exports: Exports) -> None:
    a = exports.checkpoint(GATED).architecture
    scale = Rescale(encoder=StackScale(k=2, t=(0,) * a.encoder_layers, t_source="wi_1"))

    def keys(made: Graphs) -> set[str]:
        values = made.encoder.graph.initializers.values()
        return {expression.key for value in values if (expression := expression_of(value)) is not None}

    changed = keys(graphs(exports, GATED, rescale=scale)) - keys(graphs(exports, GATED))
    written = [key for key in changed if key.endswith("*0.25") or "*0.25)" in key]
    assert len([key for key in written if ".o.weight" in key]) == a.encoder_layers
    assert len([key for key in written if ".wo.weight" in key]) == a.encoder_layers

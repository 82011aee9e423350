"""The decoder with its cache written in place: no copy of keys and values per step, and fewer ports that change.

For engines the capacity is fixed, so that every shape is; for ONNX Runtime it is an axis of its own, and buffers grow.

    cache : [batch, heads, capacity, d_kv], in and out at one address   past_length : [1] or [batch] int64
    before : present = Concat(past, new);            attention over past + target keys
    after  : present = TensorScatter(cache, new) at past_length; attention over all ``capacity`` keys

Keys that are not written yet stand later than every query, so the causal column of the distance table hides them: the
lengths need no mask of their own. ``past_length`` is data and never a shape, so that a CUDA graph can replay the step.
Where the capacity is free each row has its own: rows may keep unlike numbers of drafted tokens, or start later.

Source: ONNX ``TensorScatter`` (opset 24); TensorRT ``IKVCacheUpdateLayer``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from t5edge.bundle.architecture import Architecture
from t5edge.bundle.ports import GraphName, in_place_ports
from t5edge.exporter.graph.assemble import Graphs
from t5edge.exporter.graph.decoder import DecoderAssembler
from t5edge.exporter.graph.rescale import Rescale
from t5edge.kernels.block import Block, BlockKind
from t5edge.kernels.position_bias.fusion import distances
from t5edge.kernels.values import as_int64, constant_value

CAPACITY = "capacity"
"""Name of the caches' axis where it is free."""
LENGTH_AXIS = 2
"""Axis of the positions in a cache."""


def add_in_place(
    graphs: Graphs,
    architecture: Architecture,
    blocks: Mapping[BlockKind, Block],
    compute: str,
    rescale: Rescale,
    capacity: int | None = None,
) -> Graphs:
    """``graphs`` with an in-place decoder.

    ``capacity`` is the longest target, start token included: ``decoder_in_place``. None leaves it to whoever runs the
    graph: ``decoder_buffered``.
    """
    assert graphs.decoder_ports is not None
    ports = in_place_ports(graphs.decoder_ports, CAPACITY if capacity is None else capacity)
    assembler = _InPlaceAssembler(architecture, blocks, compute, rescale.decoder, ports)
    name: GraphName = "decoder_buffered" if capacity is None else "decoder_in_place"
    return replace(graphs, forms={**graphs.forms, name: (assembler.model(), ports)})


class _InPlaceAssembler(DecoderAssembler):
    opset = 24
    ir_version = 11

    @property
    def by_row(self) -> bool:
        """Whether every row has a length of its own."""
        shape = self.inputs["past_length"].shape
        assert shape is not None
        return not isinstance(shape[0], int)

    def self_biases(self) -> list[ir.Value]:
        """[1 or batch, heads, target, capacity] each; keys from ``past_length + target`` on are hidden as later."""
        cache = self.inputs["past_key_values.0.decoder.key"]
        assert cache.shape is not None
        capacity = cache.shape[LENGTH_AXIS]
        if isinstance(capacity, int):
            keys = constant_value(np.array(capacity, np.int64), CAPACITY)
        else:
            keys = self.length(cache, LENGTH_AXIS)
        queries = self.length(self.inputs["input_ids"], 1)
        distance = distances(self.tape, queries, keys, None)
        length = self.inputs["past_length"]
        if self.by_row:
            length = self.tape.op("Unsqueeze", [length, constant_value(as_int64(1, 2), "axes_1_2")])
        return self.look_up_biases(self.tape.op("Sub", [distance, length]))

    def build(self) -> None:
        self.write_indices = length = self.inputs["past_length"]
        if not self.by_row:
            batch = self.tape.op("Shape", [self.inputs["input_ids"]], {"start": 0, "end": 1})
            self.write_indices = self.tape.op("Expand", [length, batch])
        super().build()

    def template(self, kind: BlockKind) -> ir.Graph:
        """Past and new keys and values are not concatenated: the new ones are written at ``past_length``."""
        graph = super().template(kind)
        indices = ir.val("write_indices")
        graph.inputs.append(indices)
        for concat in [node for node in graph if node.op_type == "Concat"]:
            assert concat.inputs[0] in graph.inputs, "a cache was expected"
            scatter = ir.node("TensorScatter", [*concat.inputs, indices], {"axis": LENGTH_AXIS, "mode": "linear"})
            old, new = concat.outputs, scatter.outputs
            ir.convenience.replace_nodes_and_values(graph, concat, [concat], [scatter], old, new)
        return graph

    def further_feeds(self) -> list[ir.Value]:
        return [self.write_indices]

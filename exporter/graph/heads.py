"""What stands on an encoder: a linear layer for each token, or a decoder that runs once over the source, and a head.

    tokens  logits [batch, source, labels] = hidden @ W + b
    span    start_logits, end_logits [batch, source] of the decoder's output at every position
    text    logits [batch, labels] = tanh(x @ D + d) @ W + b of the decoder's output x at the last end token

The decoder is fed the source, shifted right behind the start token, and sees it all in cross-attention: causal, without
a cache. Source: transformers 5.23, ``modeling_t5.py`` (``T5ForTokenClassification`` and the other two).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from t5edge.bundle.architecture import HEADS
from t5edge.bundle.ports import LABEL_LOGITS, SPAN_LOGITS
from t5edge.exporter.graph.assembler import Assembler
from t5edge.exporter.graph.decoder import DecoderAssembler
from t5edge.exporter.graph.rescale import StackScale
from t5edge.exporter.graph.weight_expressions import PlainTable
from t5edge.kernels.block import BlockKind
from t5edge.kernels.position_bias.fusion import distances
from t5edge.kernels.values import as_int64, constant_value


def head_outputs(encoder: Assembler, hidden: ir.Value, scale: StackScale) -> dict[str, ir.Value]:
    """The head's outputs by their ports' names, float32; ``hidden`` is the encoder's, [batch, source, d_model].

    ``scale``: of the decoder below the head, if there is one.
    """
    if encoder.architecture.head == "tokens":
        found = {LABEL_LOGITS: _linear(encoder, hidden, *HEADS["tokens"])}
    else:
        states = _SourceDecoder(encoder, hidden, scale).states()
        found = _span(encoder, states) if encoder.architecture.head == "span" else _text(encoder, states)
    if encoder.compute != "float":
        found = {name: encoder.tape.op("Cast", [value], {"to": ir.DataType.FLOAT}) for name, value in found.items()}
    encoder.flush("head")
    return found


def _linear(graph: Assembler, x: ir.Value, weight: str, bias: str) -> ir.Value:
    """``x`` [..., d_model] times a weight [out, d_model], plus a bias [out]."""
    shapes = graph.architecture.head_shapes()
    rows, added = (graph.weight(PlainTable(name, shapes[name])) for name in (weight, bias))
    product = graph.tape.op("MatMul", [x, graph.tape.op("Transpose", [rows], {"perm": [1, 0]})])
    return graph.tape.op("Add", [product, added])


def _span(graph: Assembler, states: ir.Value) -> dict[str, ir.Value]:
    logits = _linear(graph, states, *HEADS["span"])
    places = {name: constant_value(np.array(place, np.int64), name) for place, name in enumerate(SPAN_LOGITS)}
    return {name: graph.tape.op("Gather", [logits, place], {"axis": 2}) for name, place in places.items()}


def _text(graph: Assembler, states: ir.Value) -> dict[str, ir.Value]:
    """Logits of a text from the decoder's states at its last end token, [batch, source, d_model]."""
    tape, ids, names = graph.tape, graph.inputs["input_ids"], HEADS["text"]
    end = constant_value(np.array(graph.architecture.eos_token_id, np.int64), "end_token")
    is_end = tape.op("Cast", [tape.op("Equal", [ids, end])], {"to": ir.DataType.FLOAT})
    last = tape.op("ArgMax", [is_end], {"axis": 1, "keepdims": 1, "select_last_index": 1})
    state = tape.op("GatherND", [states, last], {"batch_dims": 1})
    return {LABEL_LOGITS: _linear(graph, tape.op("Tanh", [_linear(graph, state, *names[:2])]), *names[2:])}


class _SourceDecoder(DecoderAssembler):
    """A decoder in the graph of an encoder: it runs once over the source, without a cache."""

    def __init__(self, encoder: Assembler, hidden: ir.Value, scale: StackScale) -> None:
        a = encoder.architecture.with_head_as_decoder()
        super().__init__(a, encoder.blocks, encoder.compute, scale, encoder.ports)
        ids, mask = (encoder.inputs[name] for name in ("input_ids", "attention_mask"))
        self.inputs = {"input_ids": ids, "encoder_attention_mask": mask}
        self.tape, self.nodes, self.initializers = encoder.tape, encoder.nodes, encoder.initializers
        self.encoder, self.hidden = encoder, hidden

    def states(self) -> ir.Value:
        """The decoder's normed output, [batch, source, d_model]."""
        self.build()
        self.encoder.tape = self.tape
        return self.outputs["logits"]

    def look_up_tokens(self, ids: ir.Value) -> ir.Value:
        """The source shifted right: the start token, then all but the last."""
        batch = self.tape.op("Shape", [ids], {"start": 0, "end": 1})
        one = constant_value(as_int64(1), "one_column")
        start = constant_value(as_int64(self.architecture.decoder_start_token_id), "start_token")
        column = self.tape.op("Expand", [start, self.tape.op("Concat", [batch, one], {"axis": 0})])
        bounds = [
            constant_value(as_int64(value), name) for name, value in (("first", 0), ("before_last", -1), ("axis_1", 1))
        ]
        rest = self.tape.op("Slice", [ids, *bounds])
        return super().look_up_tokens(self.tape.op("Concat", [column, rest], {"axis": 1}))

    def template(self, kind: BlockKind) -> ir.Graph:
        """Keys and values are those of this run alone."""
        graph = super().template(kind)
        for concat in [node for node in graph if node.op_type == "Concat"]:
            past, new = concat.inputs
            assert past in graph.inputs, "a cache was expected"
            assert new is not None
            ir.convenience.replace_all_uses_with(concat.outputs[0], new, replace_graph_outputs=True)
            graph.remove(concat, safe=True)
        return graph

    def self_cache(self, layer: int) -> list[ir.Value]:
        """Stands in for the past, which nothing reads."""
        return [self.hidden, self.hidden]

    def cross_cache(self, layer: int) -> list[ir.Value]:
        """Of the encoder's output."""
        return self.add_block("cross_kv", layer, [self.hidden])

    def self_biases(self) -> list[ir.Value]:
        """[1, heads, source, source] each, causal."""
        length = self.length(self.inputs["input_ids"], 1)
        return self.look_up_biases(distances(self.tape, length, length, None))

    def _logits(self, hidden: ir.Value) -> ir.Value:
        return self.final_norm(hidden)

"""The decoder graph: one step for several beams or samples of each sentence, past and cross keys and values given.

Cross-attention takes the queries of all beams of a sentence at once, so that its keys, values and mask are given once
per sentence. The batch is sentence-major: all beams of the first sentence, then those of the second.
"""

from __future__ import annotations

import onnx_ir as ir

from t5edge.bundle.architecture import Stack
from t5edge.exporter.graph.assembler import MASKED, Assembler
from t5edge.exporter.graph.prompts import CACHE_START, hide_before_start
from t5edge.kernels.block import BlockKind
from t5edge.kernels.position_bias.fusion import distances, look_up, table_index
from t5edge.kernels.values import as_int64, constant_value
from t5edge.kernels.weights import stack_of

CROSS_KEY = 5
"""Place of the cross-attention's keys among the inputs of a decoder block."""


class DecoderAssembler(Assembler):
    """input_ids, encoder_attention_mask, past and cross keys and values -> logits, present keys and values."""

    stack: Stack = "decoder"

    def build(self) -> None:
        a = self.architecture
        hidden, biases = self.embed(), self.self_biases()
        shapes = self.cross_shapes()
        cross_bias = self.cross_bias()
        self.flush("decoder/stem")
        for layer in range(a.decoder_layers):
            bias = biases[layer if a.per_layer_bias else 0]
            feeds = [hidden, bias, cross_bias, *self.self_cache(layer), *self.cross_cache(layer), *shapes]
            hidden, key, value = self.add_block("decoder", layer, [*feeds, *self.further_feeds()])
            self.outputs[f"present.{layer}.decoder.key"] = key
            self.outputs[f"present.{layer}.decoder.value"] = value
        self.outputs["logits"] = self._logits(hidden)
        self.flush("decoder/head")

    def template(self, kind: BlockKind) -> ir.Graph:
        """A decoder block gets two more inputs: the shapes before and behind its cross-attention."""
        graph = super().template(kind)
        if kind == "decoder":
            for shape in cross_shape_constants(graph):
                given = ir.val(f"{shape.name}/given")
                ir.convenience.replace_all_uses_with(shape, given)
                graph.inputs.append(given)
        return graph

    def further_feeds(self) -> list[ir.Value]:
        """What a template of a subclass takes besides."""
        return []

    def self_cache(self, layer: int) -> list[ir.Value]:
        """Past keys and values of one layer's self-attention, [batch, heads, past, d_kv] each."""
        return [self.inputs[f"past_key_values.{layer}.decoder.{half}"] for half in ("key", "value")]

    def cross_cache(self, layer: int) -> list[ir.Value]:
        """Keys and values of one layer's cross-attention, [sentences, heads, source, d_kv] each."""
        return [self.inputs[f"past_key_values.{layer}.encoder.{half}"] for half in ("key", "value")]

    def self_biases(self) -> list[ir.Value]:
        """Position bias and causality of the self-attentions, [1, heads, target, past + target] each."""
        past = self.length(self.inputs["past_key_values.0.decoder.key"], 2)
        total = self.tape.op("Add", [past, self.length(self.inputs["input_ids"], 1)])
        return self.look_up_biases(distances(self.tape, total, total, past))

    @property
    def by_row(self) -> bool:
        """Whether distances have an axis of rows in front."""
        return False

    def look_up_biases(self, distance: ir.Value) -> list[ir.Value]:
        """The biases for ``distance`` [target, keys]: one, or one per layer where every layer has its own.

        With learnt prefixes each row has its own: [batch, heads, target, keys].
        """
        a = self.architecture
        index = table_index(self.tape, distance, a.max_distance, 1)
        owners = a.decoder_layers if a.per_layer_bias else 1
        found = [look_up(self.tape, self.bias_table(layer), index, by_row=self.by_row) for layer in range(owners)]
        start = self.inputs.get(CACHE_START)
        if start is None:
            return found
        keys = self.length(distance, 2 if self.by_row else 1)
        return [hide_before_start(self, bias, keys, start) for bias in found]

    def cross_shapes(self) -> tuple[ir.Value, ir.Value]:
        """Shapes in cross-attention: queries [sentences, beams * target, heads, d_kv], output [batch, target, _]."""
        a, mask = self.architecture, self.inputs["encoder_attention_mask"]
        self.sentences = self.tape.op("Shape", [mask], {"start": 0, "end": 1})
        heads = constant_value(as_int64(-1, a.num_heads, a.d_kv), "beams_heads")
        by_sentence = self.tape.op("Concat", [self.sentences, heads], {"axis": 0})
        sizes = self.tape.op("Shape", [self.inputs["input_ids"]])
        inner = constant_value(as_int64(a.inner_dim), "inner_dim")
        return by_sentence, self.tape.op("Concat", [sizes, inner], {"axis": 0})

    def cross_bias(self) -> ir.Value:
        """Padding of the source as an additive mask, [sentences, 1, beams * target, source]."""
        seen = self.padding(self.inputs["encoder_attention_mask"])
        zero, masked = self.number(0.0, "visible"), self.number(MASKED[self.compute], "masked")
        return self._per_query(self.tape.op("Where", [seen, zero, masked]))

    def _per_query(self, cross_bias: ir.Value) -> ir.Value:
        """[sentences, 1, 1, source] -> one for each query: ONNX Runtime wants the queries' axis spelled out."""
        by_sentence = self.tape.op("Concat", [self.sentences, constant_value(as_int64(-1), "queries")], {"axis": 0})
        tokens = self.tape.op("Reshape", [self.inputs["input_ids"], by_sentence])
        queries = self.tape.op("Shape", [tokens], {"start": 1, "end": 2})
        ones = constant_value(as_int64(1, 1), "ones"), constant_value(as_int64(1), "one_axis")
        shape = self.tape.op("Concat", [ones[0], queries, ones[1]], {"axis": 0})
        return self.tape.op("Expand", [cross_bias, shape])

    def _logits(self, hidden: ir.Value) -> ir.Value:
        """[batch, target, vocab] float32. T5: tied embeddings are the output layer, scaled by d_model ** -0.5."""
        a = self.architecture
        normed = self.final_norm(hidden, a.logit_scale)
        shape = (a.vocab_size, a.d_model)
        if a.tied:
            logits = self._tied_logits(normed)
        else:
            logits = self.tape.op("MatMul", [normed, self.weight(stack_of("lm_head.weight", shape).transpose())])
        if self.compute == "float":
            return logits
        return self.tape.op("Cast", [logits], {"to": ir.DataType.FLOAT})

    def _tied_logits(self, normed: ir.Value) -> ir.Value:
        """Gemm reads the embedding table [vocab, d_model] as it lies, so it is stored once."""
        a = self.architecture
        rows = self.tape.op("Reshape", [normed, constant_value(as_int64(-1, a.d_model), "rows")])
        flat = self.tape.op("Gemm", [rows, self.embedding_table()], {"transB": 1})
        sizes = self.tape.op("Shape", [self.inputs["input_ids"]])
        shape = self.tape.op("Concat", [sizes, constant_value(as_int64(a.vocab_size), "vocab_size")], {"axis": 0})
        return self.tape.op("Reshape", [flat, shape])


def cross_shape_constants(graph: ir.Graph) -> tuple[ir.Value, ir.Value]:
    """The constant shapes of the two Reshapes around a decoder block's cross-attention, before and behind it."""
    (attention,) = graph.inputs[CROSS_KEY].consumers()
    query, output = attention.inputs[0], attention.outputs[0]
    (transpose,) = output.consumers()
    (behind,) = transpose.outputs[0].consumers()
    before = _producer(_producer(query, "Transpose").inputs[0], "Reshape")
    shapes = before.inputs[1], behind.inputs[1]
    for shape in shapes:
        assert shape is not None
        assert len(shape.uses()) == 1, "a shape of cross-attention is used elsewhere too"
    return shapes  # type: ignore[return-value]


def _producer(value: ir.Value | None, op_type: str) -> ir.Node:
    node = None if value is None else value.producer()
    assert node is not None
    assert node.op_type == op_type
    return node

"""The encoder graph: embedding, layers, final norm, and the cross keys and values of every decoder layer.

Of a sentence encoder one vector for each text; below a head what it gives.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from t5edge.bundle.architecture import Architecture, Stack
from t5edge.bundle.ports import EMBEDDING, GraphPorts
from t5edge.bundle.records import SentenceFacts
from t5edge.exporter.graph.assembler import MASKED, Assembler
from t5edge.exporter.graph.heads import head_outputs
from t5edge.exporter.graph.prompts import look_up_prefixes, look_up_source
from t5edge.exporter.graph.rescale import StackScale
from t5edge.exporter.graph.sentence import sentence_embedding
from t5edge.kernels.block import Block, BlockKind
from t5edge.kernels.position_bias.fusion import distances, look_up, table_index


class EncoderAssembler(Assembler):
    """input_ids, attention_mask -> last_hidden_state, cross keys and values."""

    stack: Stack = "encoder"

    def __init__(
        self,
        architecture: Architecture,
        blocks: Mapping[BlockKind, Block],
        compute: str,
        scale: StackScale,
        ports: GraphPorts,
        sentence: SentenceFacts | None = None,
        head_scale: StackScale | None = None,
    ) -> None:
        """``head_scale``: of the decoder below a head."""
        super().__init__(architecture, blocks, compute, scale, ports)
        self.sentence, self.head_scale = sentence, head_scale or StackScale()

    def build(self) -> None:
        hidden = self.encode()
        self.outputs["last_hidden_state"] = hidden
        if self.sentence is not None:
            self.outputs[EMBEDDING] = self._embedding(hidden, self.sentence)
            self.flush("sentence")
        if self.architecture.head:
            self.outputs |= head_outputs(self, hidden, self.head_scale)
        for layer in range(self.architecture.decoder_layers):
            key, value = self.add_block("cross_kv", layer, [hidden])
            self.outputs[f"present.{layer}.encoder.key"] = key
            self.outputs[f"present.{layer}.encoder.value"] = value
        if self.architecture.prefix_lengths:
            self.outputs |= look_up_prefixes(self)
            self.flush("encoder/prefix")

    def look_up_tokens(self, ids: ir.Value) -> ir.Value:
        """Rows of the embedding table, and of that of virtual tokens where there is one."""
        return look_up_source(self, ids) if self.architecture.prompt_shapes() else super().look_up_tokens(ids)

    def encode(self) -> ir.Value:
        """The last hidden state, [batch, source, d_model]."""
        a = self.architecture
        hidden = self.embed()
        length = self.length(self.inputs["input_ids"], 1)
        index = table_index(self.tape, distances(self.tape, length, length, None), a.max_distance, a.max_distance)
        seen = self.padding(self.inputs["attention_mask"])
        biases = [self._bias(layer, index, seen) for layer in range(a.encoder_layers if a.per_layer_bias else 1)]
        self.flush("encoder/stem")
        for layer in range(a.encoder_layers):
            (hidden,) = self.add_block("encoder", layer, [hidden, biases[layer if a.per_layer_bias else 0]])
        hidden = self.final_norm(hidden)
        self.flush("encoder/head")
        return hidden

    def _embedding(self, hidden: ir.Value, sentence: SentenceFacts) -> ir.Value:
        """Sentence embeddings float32 [batch, dimension]."""
        mask = self.inputs["attention_mask"]
        wide = hidden if self.compute == "float" else self.tape.op("Cast", [hidden], {"to": ir.DataType.FLOAT})
        return sentence_embedding(self.tape, wide, self.architecture.d_model, mask, self.length(mask, 1), sentence)

    def _bias(self, layer: int, index: ir.Value, seen: ir.Value) -> ir.Value:
        """Position bias and padding in one additive mask, [batch, heads, source, source]."""
        bias = look_up(self.tape, self.bias_table(layer), index)
        return self.tape.op("Where", [seen, bias, self.number(MASKED[self.compute], "masked")])

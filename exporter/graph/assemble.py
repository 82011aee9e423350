"""Assemble the fused blocks, once per layer, between embedding and output: the encoder graph and the decoder graph.

encoder : input_ids, attention_mask -> last_hidden_state, cross keys and values of every decoder layer
decoder : input_ids, encoder_attention_mask, past and cross keys and values -> logits, present keys and values

An encoder alone is the first graph without cross keys and values; a sentence encoder has embeddings besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from t5edge.bundle.architecture import Architecture
from t5edge.bundle.ports import GraphName, GraphPorts, decoder_ports, encoder_ports, head_ports, prefix_ports
from t5edge.bundle.records import SentenceFacts
from t5edge.exporter.graph.decoder import DecoderAssembler
from t5edge.exporter.graph.encoder import EncoderAssembler
from t5edge.exporter.graph.rescale import Rescale
from t5edge.kernels.block import Block, BlockKind


@dataclass(frozen=True)
class Graphs:
    """The assembled graphs with their ports; ``forms`` are other forms of the decoder, by their files' names.

    ``others`` are graphs of another layout over the same weights, likewise. An encoder alone has no ``decoder``.
    """

    encoder: ir.Model
    decoder: ir.Model | None
    encoder_ports: GraphPorts
    decoder_ports: GraphPorts | None
    forms: Mapping[GraphName, tuple[ir.Model, GraphPorts]] = field(default_factory=dict)
    others: Mapping[str, ir.Model] = field(default_factory=dict)

    def items(self) -> tuple[tuple[str, ir.Model], ...]:
        """Every graph under its file's name."""
        both = {"encoder": self.encoder} | ({} if self.decoder is None else {"decoder": self.decoder})
        return (*both.items(), *((name, model) for name, (model, _) in self.forms.items()), *self.others.items())

    def ports(self) -> dict[str, GraphPorts]:
        """The ports of our own graphs under their files' names."""
        both = {"encoder": self.encoder_ports}
        both |= {} if self.decoder_ports is None else {"decoder": self.decoder_ports}
        return both | {name: ports for name, (_, ports) in self.forms.items()}


def assemble(
    architecture: Architecture,
    blocks: Mapping[BlockKind, Block],
    compute: str,
    rescale: Rescale,
    sentence: SentenceFacts | None = None,
) -> Graphs:
    """Build the graphs in ``compute`` (float, float16, bfloat16) from fused blocks, rescaled exactly.

    ``sentence``: what makes embeddings of an encoder alone.
    """
    a = architecture
    size = None if sentence is None else sentence.dimension
    encoder = encoder_ports(a.decoder_layers, a.num_heads, a.d_kv, a.d_model, compute, size)
    if a.head:
        encoder = head_ports(encoder, a.head, a.labels)
    if a.encoder_alone:
        model = EncoderAssembler(a, blocks, compute, rescale.encoder, encoder, sentence, rescale.decoder).model()
        return Graphs(model, None, encoder, None)
    decoder = decoder_ports(a.decoder_layers, a.num_heads, a.d_kv, a.vocab_size, compute)
    if a.prefix_lengths:
        encoder, decoder = prefix_ports(encoder, decoder, a.prefix_length)
    encoder_model = EncoderAssembler(a, blocks, compute, rescale.encoder, encoder).model()
    decoder_model = DecoderAssembler(a, blocks, compute, rescale.decoder, decoder).model()
    return Graphs(encoder_model, decoder_model, encoder, decoder)

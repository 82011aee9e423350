"""optimum's three graphs, as ``ORTModelForSeq2SeqLM`` reads them, assembled from the same blocks over the same weights.

    encoder_model            input_ids, attention_mask -> last_hidden_state
    decoder_model            first step: encoder_hidden_states, no past -> logits, all keys and values
    decoder_with_past_model  later steps: past and cross keys and values -> logits, present keys and values

Ours differ in one place: our encoder emits the cross keys and values, optimum's first step computes them.

Source: ``optimum.onnxruntime.modeling_seq2seq`` of optimum-onnx 0.1.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from t5edge.bundle.architecture import Architecture
from t5edge.bundle.ports import GraphPorts, Port, decoder_ports, encoder_ports
from t5edge.exporter.graph.assemble import Graphs
from t5edge.exporter.graph.decoder import DecoderAssembler
from t5edge.exporter.graph.encoder import EncoderAssembler
from t5edge.exporter.graph.rescale import Rescale
from t5edge.kernels.block import Block, BlockKind
from t5edge.kernels.position_bias.fusion import distances
from t5edge.kernels.values import as_int64, constant_value

ENCODER, FIRST_STEP, LATER_STEPS = "encoder_model", "decoder_model", "decoder_with_past_model"
AXES = {
    "batch": "batch_size",
    "source": "encoder_sequence_length",
    "target": "decoder_sequence_length",
    "past": "past_decoder_sequence_length",
    "past + target": "past_decoder_sequence_length + decoder_sequence_length",
}
"""Our axis -> optimum's. transformers.js makes its empty cache by these names."""


def add_optimum(
    graphs: Graphs, architecture: Architecture, blocks: Mapping[BlockKind, Block], compute: str, rescale: Rescale
) -> Graphs:
    """``graphs`` with optimum's three among its ``others``, in ``compute`` (float or float16)."""
    ports = optimum_ports(architecture, compute)
    others = {
        ENCODER: _EncoderAssembler(architecture, blocks, compute, rescale.encoder, ports[ENCODER]),
        FIRST_STEP: _FirstStepAssembler(architecture, blocks, compute, rescale.decoder, ports[FIRST_STEP]),
        LATER_STEPS: DecoderAssembler(architecture, blocks, compute, rescale.decoder, ports[LATER_STEPS]),
    }
    return replace(graphs, others={name: assembler.model() for name, assembler in others.items()})


def optimum_ports(architecture: Architecture, compute: str) -> dict[str, GraphPorts]:
    """Ports of the three graphs by file name; order and names are optimum's."""
    a = architecture
    encoder = encoder_ports(a.decoder_layers, a.num_heads, a.d_kv, a.d_model, compute)
    decoder = decoder_ports(a.decoder_layers, a.num_heads, a.d_kv, a.vocab_size, compute)
    ids, mask = (port for port in decoder.inputs if port.dtype == "int64")
    logits, *own = decoder.outputs
    hidden = Port("encoder_hidden_states", compute, ("batch", "source", a.d_model))
    present = []
    for layer in range(a.decoder_layers):
        grown = [
            replace(port, axes=("batch", a.num_heads, "target", a.d_kv)) for port in own[2 * layer : 2 * layer + 2]
        ]
        cross = [port for port in encoder.outputs if port.name.startswith(f"present.{layer}.")]
        present += [*grown, *cross]
    return {
        ENCODER: _renamed(encoder.inputs, encoder.outputs[:1]),
        FIRST_STEP: _renamed((mask, ids, hidden), (logits, *present)),
        LATER_STEPS: _renamed((mask, ids, *decoder.inputs[2:]), decoder.outputs),
    }


def _renamed(inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> GraphPorts:
    def rename(port: Port) -> Port:
        return replace(port, axes=tuple(AXES[axis] if isinstance(axis, str) else axis for axis in port.axes))

    return GraphPorts(tuple(map(rename, inputs)), tuple(map(rename, outputs)))


class _EncoderAssembler(EncoderAssembler):
    def build(self) -> None:
        self.outputs["last_hidden_state"] = self.encode()


class _FirstStepAssembler(DecoderAssembler):
    """The decoder at past length 0, with the projection of the cross keys and values in front of each layer."""

    def build(self) -> None:
        self.empty = self._empty_cache()
        super().build()

    def self_cache(self, layer: int) -> list[ir.Value]:
        return [self.empty, self.empty]

    def cross_cache(self, layer: int) -> list[ir.Value]:
        key, value = self.add_block("cross_kv", layer, [self.inputs["encoder_hidden_states"]])
        self.outputs[f"present.{layer}.encoder.key"] = key
        self.outputs[f"present.{layer}.encoder.value"] = value
        return [key, value]

    def self_biases(self) -> list[ir.Value]:
        """[1, heads, target, target] each."""
        length = self.length(self.inputs["input_ids"], 1)
        return self.look_up_biases(distances(self.tape, length, length, None))

    def _empty_cache(self) -> ir.Value:
        """[batch, heads, 0, d_kv]."""
        a = self.architecture
        batch = self.tape.op("Shape", [self.inputs["input_ids"]], {"start": 0, "end": 1})
        rest = constant_value(as_int64(a.num_heads, 0, a.d_kv), "empty_cache")
        shape = self.tape.op("Concat", [batch, rest], {"axis": 0})
        return self.tape.op("ConstantOfShape", [shape], {"value": ir.tensor(np.zeros(1, self.dtype.numpy()))})

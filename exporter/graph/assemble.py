"""Assemble the fused blocks once per layer between a stem and a head: the encoder graph and the decoder graph.

    encoder : input_ids, attention_mask -> last_hidden_state, cross keys and values of every decoder layer
    decoder : input_ids, encoder_attention_mask, past and cross keys and values -> logits, present keys and values

Cost does not depend on depth or width: a layer is a copy of some twenty nodes that name other weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from t5edge.bundle.architecture import Architecture, Stack
from t5edge.bundle.ports import GraphName, GraphPorts, Port, decoder_ports, encoder_ports
from t5edge.exporter.graph.position_buckets import bucket_table
from t5edge.exporter.graph.rescale import Rescale, StackScale
from t5edge.exporter.graph.weight_expressions import DistanceTable
from t5edge.kernels.block import OPSET, Block, BlockKind
from t5edge.kernels.position_bias.fusion import distances, look_up, table_index
from t5edge.kernels.values import as_int64, constant_value
from t5edge.kernels.weights import PlannedTensor, Source, planned_value, stack_of
from t5edge.kernels.weights import Stack as StackRecipe

CROSS_KEY = 5
"""Place of the cross-attention's keys among the inputs of a decoder block."""
MASKED = {"float": float(np.finfo(np.float32).min), "float16": -32768.0, "bfloat16": -3.3895313892515355e38}
"""Additive mask of a hidden key. float16: far below any score, and finite even when scores are added."""


@dataclass(frozen=True)
class Graphs:
    """The assembled graphs with their ports; ``forms`` are other forms of the decoder, by their files' names.

    ``others`` are graphs of another layout over the same weights, likewise.
    """

    encoder: ir.Model
    decoder: ir.Model
    encoder_ports: GraphPorts
    decoder_ports: GraphPorts
    forms: Mapping[GraphName, tuple[ir.Model, GraphPorts]] = field(default_factory=dict)
    others: Mapping[str, ir.Model] = field(default_factory=dict)

    def items(self) -> tuple[tuple[str, ir.Model], ...]:
        """Every graph under its file's name."""
        both = (("encoder", self.encoder), ("decoder", self.decoder))
        return (*both, *((name, model) for name, (model, _) in self.forms.items()), *self.others.items())

    def ports(self) -> dict[str, GraphPorts]:
        """The ports of our own graphs under their files' names."""
        both = {"encoder": self.encoder_ports, "decoder": self.decoder_ports}
        return both | {name: ports for name, (_, ports) in self.forms.items()}


def assemble(architecture: Architecture, blocks: Mapping[BlockKind, Block], compute: str, rescale: Rescale) -> Graphs:
    """Build both graphs in ``compute`` (float, float16, bfloat16) from fused blocks, rescaled exactly."""
    a = architecture
    encoder = encoder_ports(a.decoder_layers, a.num_heads, a.d_kv, a.d_model, compute)
    decoder = decoder_ports(a.decoder_layers, a.num_heads, a.d_kv, a.vocab_size, compute)
    return Graphs(
        EncoderAssembler(a, blocks, compute, rescale.encoder, encoder).model(),
        DecoderAssembler(a, blocks, compute, rescale.decoder, decoder).model(),
        encoder,
        decoder,
    )


class Assembler:
    """A graph under construction: ports in, nodes appended, weights named by their expressions."""

    stack: Stack
    opset = OPSET
    ir_version = 10

    def __init__(
        self,
        architecture: Architecture,
        blocks: Mapping[BlockKind, Block],
        compute: str,
        scale: StackScale,
        ports: GraphPorts,
    ) -> None:
        self.architecture, self.blocks, self.scale, self.ports = architecture, blocks, scale, ports
        self.compute = compute
        self.dtype = ir.DataType[compute.upper()]
        self.inputs = {port.name: _port_value(port) for port in ports.inputs}
        self.initializers: dict[str, ir.Value] = {}
        self.tape = ir.tape.Tape()
        self.nodes: list[ir.Node] = []
        self.outputs: dict[str, ir.Value] = {}

    def model(self) -> ir.Model:
        """Stem, layers and head in order; then outputs get their port's names and types."""
        self.build()
        for port in self.ports.outputs:
            value = self.outputs[port.name]
            value.name, value.type, value.shape = (
                port.name,
                ir.TensorType(ir.DataType[port.dtype.upper()]),
                _shape(port),
            )
        graph = ir.Graph(
            inputs=list(self.inputs.values()),
            outputs=[self.outputs[port.name] for port in self.ports.outputs],
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            opset_imports={"": self.opset},
            name=self.stack,
        )
        return ir.Model(graph, ir_version=self.ir_version, producer_name="t5edge")

    def build(self) -> None:
        raise NotImplementedError

    def flush(self, prefix: str) -> None:
        """Take the tape's nodes into the graph under readable names, sharing equal small constants."""
        for node in self.tape.nodes:
            self._append(node, prefix)
        self.tape = ir.tape.Tape()

    def _append(self, node: ir.Node, prefix: str) -> None:
        for index, value in enumerate(node.inputs):
            if value is not None and value.const_value is not None:
                node.replace_input_with(index, self.initializer(value))
        node.name = f"{prefix}/{node.op_type}_{len(self.nodes)}"
        for index, output in enumerate(node.outputs):
            output.name = f"{node.name}:{index}"
        self.nodes.append(node)

    def initializer(self, value: ir.Value) -> ir.Value:
        """The graph's one value for this weight or constant."""
        tensor = value.const_value
        assert tensor is not None
        if isinstance(tensor, PlannedTensor):
            key = tensor.expression.key
        else:
            data = tensor.numpy()
            key = f"const.{data.dtype.name}.{'x'.join(map(str, data.shape))}.{'_'.join(map(str, data.reshape(-1)))}"
        if key not in self.initializers:
            if isinstance(tensor, PlannedTensor):
                self.initializers[key] = planned_value(tensor.expression, tensor.dtype, key)
            else:
                self.initializers[key] = constant_value(tensor.numpy(), key)
        return self.initializers[key]

    def weight(self, expression: StackRecipe | DistanceTable) -> ir.Value:
        return self.initializer(planned_value(expression, self.dtype, expression.key))

    def vector(self, name: str, scale: float = 1.0) -> ir.Value:
        """A norm's weight, [d_model]."""
        expression = StackRecipe((Source(name, scale),), (self.architecture.d_model,), None)
        return self.weight(expression)

    def embed(self) -> ir.Value:
        """Token embeddings, [batch, length, d_model], divided by 2^k."""
        a = self.architecture
        table = self.weight(stack_of("shared.weight", (a.vocab_size, a.d_model)))
        hidden = self.tape.op("Gather", [table, self.inputs["input_ids"]], {"axis": 0})
        if self.scale.k:
            hidden = self.tape.op("Mul", [hidden, self.number(2.0**-self.scale.k, "embedding_scale")])
        return hidden

    def number(self, value: float, name: str) -> ir.Value:
        """A scalar constant of the compute dtype."""
        return constant_value(np.array(value, dtype=self.dtype.numpy()), name)

    def length(self, value: ir.Value, axis: int) -> ir.Value:
        """The size of one axis as an int64 scalar."""
        size = self.tape.op("Shape", [value], {"start": axis, "end": axis + 1})
        return self.tape.op("Squeeze", [size, constant_value(as_int64(0), "axis_0")])

    def padding(self, mask: ir.Value) -> ir.Value:
        """[batch, source] int64 -> [batch, 1, 1, source] bool, true where a key may be seen."""
        seen = self.tape.op("Cast", [mask], {"to": ir.DataType.BOOL})
        return self.tape.op("Unsqueeze", [seen, constant_value(as_int64(1, 2), "axes_1_2")])

    def bias_table(self, layer: int) -> ir.Value:
        """The distance table of one layer, [heads, distances]; T5 has one for the stack, UMT5 one per layer."""
        a = self.architecture
        owner = layer if a.per_layer_bias else 0
        causal = self.stack == "decoder"
        table = DistanceTable(
            f"{self.stack}.block.{owner}.layer.0.SelfAttention.relative_attention_bias.weight",
            bucket_table(a.num_buckets, a.max_distance, bidirectional=not causal),
            a.num_heads,
            MASKED[self.compute] if causal else None,
        )
        return self.weight(table)

    def instantiate_block(
        self,
        kind: BlockKind,
        layer: int,
        feeds: Sequence[ir.Value],
        instead: Mapping[ir.Value, ir.Value] | None = None,
    ) -> list[ir.Value]:
        """Copy one fused block for ``layer``; returns its outputs. Weights are prefixed and rescaled by their role.

        ``instead``: values of the block that are replaced by values of this graph.
        """
        stack: Stack = "decoder" if kind == "cross_kv" else kind
        prefix = f"{stack}.block.{layer}."
        graph = self.blocks[kind].graph
        mapping: dict[ir.Value, ir.Value] = dict(zip(graph.inputs, feeds, strict=True))
        for value in graph.initializers.values():
            mapping[value] = self._layer_value(value, prefix, layer, rescaled=kind != "cross_kv")
        mapping.update(instead or {})
        for node in graph:
            if node.op_type == "Constant":
                if node.outputs[0] in mapping:
                    continue
                tensor = ir.convenience.get_const_tensor(node.outputs[0])
                assert tensor is not None
                mapping[node.outputs[0]] = constant_value(tensor.numpy(), "constant")
                continue
            copy = self.copy_node(node, [None if value is None else mapping[value] for value in node.inputs])
            self._append(copy, f"{prefix}{'cross_kv' if kind == 'cross_kv' else 'block'}")
            mapping.update(zip(node.outputs, copy.outputs, strict=True))
        return [mapping[output] for output in graph.outputs]

    def copy_node(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> ir.Node:
        """One node of a block for this layer."""
        attributes = [self._attribute(node, attribute) for attribute in node.attributes.values()]
        return ir.Node("", node.op_type, inputs, attributes, num_outputs=len(node.outputs))

    def _layer_value(self, value: ir.Value, prefix: str, layer: int, rescaled: bool) -> ir.Value:
        tensor = value.const_value
        if not isinstance(tensor, PlannedTensor):
            assert tensor is not None
            return constant_value(tensor.numpy(), "constant")
        expression = tensor.expression.prefixed(prefix)
        if rescaled and isinstance(expression, StackRecipe):
            names = [source.name for source in expression.sources]
            expression = expression.scaled({name: self.scale.factor(name, layer) for name in names})
        return planned_value(expression, self.dtype, expression.key)

    def _attribute(self, node: ir.Node, attribute: ir.Attr) -> ir.Attr:
        if node.op_type == "RMSNormalization" and attribute.name == "epsilon":
            return ir.AttrFloat32("epsilon", attribute.as_float() * self.scale.epsilon_factor)
        return attribute

    def final_norm(self, hidden: ir.Value, scale: float = 1.0) -> ir.Value:
        weight = self.vector(f"{self.stack}.final_layer_norm.weight", scale)
        epsilon = float(np.float32(self.architecture.norm_epsilon)) * self.scale.epsilon_factor
        return self.tape.op("RMSNormalization", [hidden, weight], {"axis": -1, "epsilon": epsilon, "stash_type": 1})


class EncoderAssembler(Assembler):
    stack: Stack = "encoder"

    def build(self) -> None:
        hidden = self.encode()
        self.outputs["last_hidden_state"] = hidden
        for layer in range(self.architecture.decoder_layers):
            key, value = self.instantiate_block("cross_kv", layer, [hidden])
            self.outputs[f"present.{layer}.encoder.key"] = key
            self.outputs[f"present.{layer}.encoder.value"] = value

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
            (hidden,) = self.instantiate_block("encoder", layer, [hidden, biases[layer if a.per_layer_bias else 0]])
        hidden = self.final_norm(hidden)
        self.flush("encoder/head")
        return hidden

    def _bias(self, layer: int, index: ir.Value, seen: ir.Value) -> ir.Value:
        """Position bias and padding in one additive mask, [batch, heads, source, source]."""
        bias = look_up(self.tape, self.bias_table(layer), index)
        return self.tape.op("Where", [seen, bias, self.number(MASKED[self.compute], "masked")])


class DecoderAssembler(Assembler):
    """Several rows (beams, samples) may share a sentence: cross-attention takes the queries of all rows of a sentence
    at once, so that its keys, values and mask are given once per sentence, rows being sentence-major.
    """

    stack: Stack = "decoder"

    def build(self) -> None:
        a = self.architecture
        hidden, biases = self.embed(), self.own_biases()
        by_sentence, by_row = self.cross_shapes()
        cross_bias = self.cross_bias()
        into, out_of = cross_reshapes(self.blocks["decoder"])
        instead = {into: by_sentence, out_of: by_row}
        self.flush("decoder/stem")
        for layer in range(a.decoder_layers):
            bias = biases[layer if a.per_layer_bias else 0]
            feeds = [hidden, bias, cross_bias, *self.own_cache(layer), *self.cross_cache(layer)]
            hidden, key, value = self.instantiate_block("decoder", layer, feeds, instead)
            self.outputs[f"present.{layer}.decoder.key"] = key
            self.outputs[f"present.{layer}.decoder.value"] = value
        self.outputs["logits"] = self._logits(hidden)
        self.flush("decoder/head")

    def own_cache(self, layer: int) -> list[ir.Value]:
        """Past keys and values of one layer's self-attention, [batch, heads, past, d_kv] each."""
        return [self.inputs[f"past_key_values.{layer}.decoder.{half}"] for half in ("key", "value")]

    def cross_cache(self, layer: int) -> list[ir.Value]:
        """Keys and values of one layer's cross-attention, [batch, heads, source, d_kv] each."""
        return [self.inputs[f"past_key_values.{layer}.encoder.{half}"] for half in ("key", "value")]

    def own_biases(self) -> list[ir.Value]:
        """Position bias and causality of the self-attentions, [1, heads, target, past + target] each."""
        past = self.length(self.inputs["past_key_values.0.decoder.key"], 2)
        total = self.tape.op("Add", [past, self.length(self.inputs["input_ids"], 1)])
        return self.look_up_biases(distances(self.tape, total, total, past))

    def look_up_biases(self, distance: ir.Value) -> list[ir.Value]:
        """The biases for ``distance`` [target, keys]: one, or one per layer where every layer has its own."""
        a = self.architecture
        index = table_index(self.tape, distance, a.max_distance, 1)
        owners = a.decoder_layers if a.per_layer_bias else 1
        return [look_up(self.tape, self.bias_table(layer), index) for layer in range(owners)]

    def cross_shapes(self) -> tuple[ir.Value, ir.Value]:
        """Shapes of cross-attention's queries [sentences, rows * target, heads, d_kv] and output [batch, target, _]."""
        a, mask = self.architecture, self.inputs["encoder_attention_mask"]
        self.sentences = self.tape.op("Shape", [mask], {"start": 0, "end": 1})
        heads = constant_value(as_int64(-1, a.num_heads, a.d_kv), "all_rows_heads")
        by_sentence = self.tape.op("Concat", [self.sentences, heads], {"axis": 0})
        sizes = self.tape.op("Shape", [self.inputs["input_ids"]])
        inner = constant_value(as_int64(a.inner_dim), "inner_dim")
        return by_sentence, self.tape.op("Concat", [sizes, inner], {"axis": 0})

    def cross_bias(self) -> ir.Value:
        """Padding of the source as an additive mask, [sentences, 1, rows of a sentence * target, source]."""
        seen = self.padding(self.inputs["encoder_attention_mask"])
        zero, masked = self.number(0.0, "visible"), self.number(MASKED[self.compute], "masked")
        return self._per_query(self.tape.op("Where", [seen, zero, masked]))

    def _per_query(self, cross_bias: ir.Value) -> ir.Value:
        """[sentences, 1, 1, source] -> one for each query: ONNX Runtime wants the queries' axis spelled out."""
        rows = self.tape.op("Concat", [self.sentences, constant_value(as_int64(-1), "all_rows")], {"axis": 0})
        tokens = self.tape.op("Reshape", [self.inputs["input_ids"], rows])
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
            logits = self._tied_logits(normed, stack_of("shared.weight", shape))
        else:
            logits = self.tape.op("MatMul", [normed, self.weight(stack_of("lm_head.weight", shape).transpose())])
        if self.compute == "float":
            return logits
        return self.tape.op("Cast", [logits], {"to": ir.DataType.FLOAT})

    def _tied_logits(self, normed: ir.Value, table: StackRecipe) -> ir.Value:
        """Gemm reads the embedding table [vocab, d_model] as it lies, so it is stored once."""
        a = self.architecture
        rows = self.tape.op("Reshape", [normed, constant_value(as_int64(-1, a.d_model), "rows")])
        flat = self.tape.op("Gemm", [rows, self.weight(table)], {"transB": 1})
        sizes = self.tape.op("Shape", [self.inputs["input_ids"]])
        shape = self.tape.op("Concat", [sizes, constant_value(as_int64(a.vocab_size), "vocab_size")], {"axis": 0})
        return self.tape.op("Reshape", [flat, shape])


def cross_reshapes(block: Block) -> tuple[ir.Value, ir.Value]:
    """The constant shapes of the two Reshapes around a decoder block's cross-attention, before and behind it."""
    cross_key = block.graph.inputs[CROSS_KEY]
    (attention,) = (use.node for use in cross_key.uses())
    into, out_of = attention.inputs[0], attention.outputs[0]
    assert into is not None
    shapes = (
        _producer(_producer(into, "Transpose").inputs[0], "Reshape").inputs[1],
        _user(_user(out_of).outputs[0]).inputs[1],
    )
    for shape in shapes:
        assert shape is not None
        assert len(shape.uses()) == 1, "a shape of cross-attention is used elsewhere too"
    return shapes  # type: ignore[return-value]


def _producer(value: ir.Value | None, op_type: str) -> ir.Node:
    node = None if value is None else value.producer()
    assert node is not None
    assert node.op_type == op_type
    return node


def _user(value: ir.Value) -> ir.Node:
    (use,) = value.uses()
    return use.node


def _shape(port: Port) -> ir.Shape:
    return ir.Shape(port.axes)


def _port_value(port: Port) -> ir.Value:
    return ir.Value(name=port.name, type=ir.TensorType(ir.DataType[port.dtype.upper()]), shape=_shape(port))

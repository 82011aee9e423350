"""A graph under construction: embedding, one copy of a fused block per layer, final norm.

Cost does not depend on depth or width: a layer is a copy of some twenty nodes that name other weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from t5edge.bundle.architecture import Architecture, Stack
from t5edge.bundle.ports import GraphPorts
from t5edge.exporter.graph.position_buckets import bucket_table
from t5edge.exporter.graph.rescale import StackScale
from t5edge.exporter.graph.weight_expressions import DistanceTable, PlainTable
from t5edge.kernels.block import OPSET, Block, BlockKind
from t5edge.kernels.values import as_int64, constant_value
from t5edge.kernels.weights import PlannedTensor, Source, StackedWeight, planned_value, stack_of

DTYPES = {
    "float": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "int64": ir.DataType.INT64,
}
MASKED = {"float": float(np.finfo(np.float32).min), "float16": -32768.0, "bfloat16": -3.3895313892515355e38}
"""Additive mask of a hidden key. float16: far below any score, and finite even when scores are added."""


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
        self.dtype = DTYPES[compute]
        self.inputs = {port.name: ir.val(port.name, DTYPES[port.dtype], port.axes) for port in ports.inputs}
        self.initializers: dict[str, ir.Value] = {}
        self.tape = ir.tape.Tape()
        self.nodes: list[ir.Node] = []
        self.templates: dict[BlockKind, ir.Graph] = {}
        self.outputs: dict[str, ir.Value] = {}

    def model(self) -> ir.Model:
        """Embedding, layers and output in order; then outputs get their port's names and types."""
        self.build()
        for port in self.ports.outputs:
            value = self.outputs[port.name]
            value.name, value.type, value.shape = port.name, ir.TensorType(DTYPES[port.dtype]), ir.Shape(port.axes)
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
            return self.initializers.setdefault(key, planned_value(tensor.expression, tensor.dtype, key))
        data = tensor.numpy()
        key = f"const.{data.dtype.name}.{'x'.join(map(str, data.shape))}.{'_'.join(map(str, data.reshape(-1)))}"
        return self.initializers.setdefault(key, constant_value(data, key))

    def weight(self, expression: StackedWeight | DistanceTable | PlainTable) -> ir.Value:
        return self.initializer(planned_value(expression, self.dtype, expression.key))

    def vector(self, name: str, scale: float = 1.0) -> ir.Value:
        """A norm's weight, [d_model]."""
        expression = StackedWeight((Source(name, scale),), (self.architecture.d_model,), None)
        return self.weight(expression)

    def embedding_table(self) -> ir.Value:
        """[vocab, d_model]."""
        a = self.architecture
        return self.weight(stack_of("shared.weight", (a.vocab_size, a.d_model)))

    def embed(self) -> ir.Value:
        """Token embeddings, [batch, length, d_model], divided by 2^k."""
        hidden = self.look_up_tokens(self.inputs["input_ids"])
        if self.scale.k:
            hidden = self.tape.op("Mul", [hidden, self.number(2.0**-self.scale.k, "embedding_scale")])
        return hidden

    def look_up_tokens(self, ids: ir.Value) -> ir.Value:
        """Rows of the embedding table [batch, length, d_model]."""
        return self.tape.op("Gather", [self.embedding_table(), ids], {"axis": 0})

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

    def template(self, kind: BlockKind) -> ir.Graph:
        """One fused block as it is copied for every layer: constants are initializers, and types are left open."""
        model = self.blocks[kind].model.clone()
        common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common_passes.ClearMetadataAndDocStringPass()(model)
        for value in (output for node in model.graph for output in node.outputs):
            value.type = value.shape = None
            value.metadata_props.clear()
        return model.graph

    def add_block(self, kind: BlockKind, layer: int, feeds: Sequence[ir.Value]) -> list[ir.Value]:
        """Copy one block for ``layer``; returns its outputs. Weights are prefixed and rescaled by their role."""
        if kind not in self.templates:
            self.templates[kind] = self.template(kind)
        copy = self.templates[kind].clone()
        prefix = f"{'decoder' if kind == 'cross_kv' else kind}.block.{layer}."
        ir.convenience.replace_all_uses_with(copy.inputs, feeds)
        for value in copy.initializers.values():
            layer_value = self._layer_value(value, prefix, layer, rescaled=kind != "cross_kv")
            ir.convenience.replace_all_uses_with(value, layer_value)
        outputs, nodes = list(copy.outputs), list(copy)
        copy.outputs.clear()
        copy.remove(nodes)
        for node in nodes:
            if node.op_type == "RMSNormalization":
                epsilon = node.attributes["epsilon"].as_float() * self.scale.epsilon_factor
                node.attributes["epsilon"] = ir.AttrFloat32("epsilon", epsilon)
            self._append(node, f"{prefix}{'cross_kv' if kind == 'cross_kv' else 'block'}")
        return outputs

    def _layer_value(self, value: ir.Value, prefix: str, layer: int, rescaled: bool) -> ir.Value:
        tensor = value.const_value
        if not isinstance(tensor, PlannedTensor):
            assert tensor is not None
            return constant_value(tensor.numpy(), "constant")
        expression = tensor.expression.prefixed(prefix)
        if rescaled and isinstance(expression, StackedWeight):
            names = [source.name for source in expression.sources]
            expression = expression.scaled({name: self.scale.factor(name, layer) for name in names})
        return planned_value(expression, self.dtype, expression.key)

    def final_norm(self, hidden: ir.Value, scale: float = 1.0) -> ir.Value:
        weight = self.vector(f"{self.stack}.final_layer_norm.weight", scale)
        epsilon = float(np.float32(self.architecture.norm_epsilon)) * self.scale.epsilon_factor
        return self.tape.op("RMSNormalization", [hidden, weight], {"axis": -1, "epsilon": epsilon, "stash_type": 1})

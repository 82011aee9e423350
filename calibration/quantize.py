"""Weight-only quantization of the assembled graphs: DequantizeLinear in front of MatMul, symmetric, standard ONNX.

    before : x [.., in] @ W [in, out]
    after  : x @ DequantizeLinear(q [in, out] int8 | int4, scale)

    int8   one scale per output channel [out]                 q = round(W / scale), scale = max|W[:, j]| / 127
           where inputs are rounded too: and not below max|W[2i, j] + W[2i + 1, j]| / 127
    int4   one scale per block of rows and channel [in / block, out]

    embed  before : Gather(table [vocab, d_model], ids)
           after  : DequantizeLinear(Gather(q [vocab, d_model], ids), 1) * Gather(scale [vocab], ids)
    tied   after  : DequantizeLinear(Gather(q [d_model, vocab], ids, axis 1), 1) * Gather(scale [vocab], ids)
    relu   before : Relu(x)
           after  : LeakyRelu(x, 0); in float16 Max(x, 0), where an infinite x may be

The table of tied embeddings is stored once, in the output layer's layout; a table of its own lies in rows, where the
Gather reads a row in one go (t5-base, 256 tokens: 0.5 ms instead of 11). Dequantizing after the Gather costs
microseconds, before it the whole table on every step (4 ms at 32128 x 768); TensorRT wants the latter and fuses it, so
its builder moves the node. ONNX Runtime treats Relu as part of the MatMul before it and then leaves DequantizeLinear
unfused, four times slower than float32; it has no such habit with LeakyRelu or Max. LeakyRelu runs in place and on all
threads, which Max does not (t5-base, 256 tokens, one thread: 1.7 ms instead of 3.5).

Numbers are made when the weights are streamed, not here. TensorRT, TensorRT-RTX and ONNX Runtime
read the same nodes (ONNX Runtime fuses them into MatMulNBits at session load).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as ir

from t5edge.bundle.precision import Precision
from t5edge.calibration.scheme import Scheme, pack_int4, quantize_rows, row_scales, scheme_for, table_scheme
from t5edge.exporter.graph.weight_expressions import Matrix, Read, Smoothed, evaluate
from t5edge.kernels.values import constant_value
from t5edge.kernels.weights import PlannedTensor, StackedWeight, expression_of, is_behind_pooling, planned_value

if TYPE_CHECKING:
    import torch

Part = Literal["values", "scales"]
TABLE = "shared.weight"


@dataclass(frozen=True)
class QuantizedMatrix:
    """One half of a quantized matrix: its integer values, or its scales.

    A scale belongs to an output channel, a row of the checkpoint's tensor [out, in]. ``base`` is that tensor
    transposed, as MatMul wants it; a token table [vocab, d_model] may also lie as it is, with a scale for each row.
    """

    base: Matrix
    scheme: Scheme
    part: Part

    @property
    def shape(self) -> tuple[int, ...]:
        rows, columns = self.base.shape
        if self.part == "values":
            return rows, columns
        if not self.base.transposed:
            return (rows,)
        return (rows // self.scheme.block, columns) if self.scheme.block else (columns,)

    @property
    def key(self) -> str:
        block = f"x{self.scheme.block}" if self.scheme.block else ""
        narrow = "" if self.scheme.scales == "float" else f".{self.scheme.scales}"
        return f"int{self.scheme.bits}{block}{narrow}.{self.part}({self.base.key})"

    def prefixed(self, prefix: str) -> QuantizedMatrix:
        return replace(self, base=self.base.prefixed(prefix))


@evaluate.register(QuantizedMatrix)
def _(expression: QuantizedMatrix, read: Read) -> torch.Tensor:
    """int8 values in the layout of ``base`` (int4: two to a byte, flat), or float32 scales.

    The arithmetic runs on rows [out, in], as the checkpoint has them; only integers are transposed.
    """
    base, scheme = expression.base, expression.scheme
    rows = evaluate(base.transpose() if base.transposed else base, read)
    scales = row_scales(rows, scheme)
    if expression.part == "scales":
        return scales.T if scheme.block else scales
    values = quantize_rows(rows, scales, scheme)
    values = values.T.contiguous() if base.transposed else values
    return values if scheme.bits == 8 else pack_int4(values)


def quantize_weights(
    model: ir.Model,
    precision: Precision,
    excluded: frozenset[str] = frozenset(),
    table_in_rows: bool = False,
    rounded: Collection[str] = (),
) -> list[str]:
    """Put DequantizeLinear before every MatMul whose weight is not ``excluded`` (by its origin), and the embeddings.

    ``rounded``: origins of the weights whose inputs become integers as well.
    ``table_in_rows``: no graph of the bundle multiplies by the token table, so it is stored [vocab, d_model].

    Returns the keys of the quantized matrices, in graph order.
    """
    graph = model.graph
    quantized: list[str] = []
    for node in list(graph):
        if node.op_type == "Gemm" and not _is_behind_pooling(node):
            node = _gemm_to_matmul(graph, node)
        elif node.op_type == "Relu":
            _replace_relu(graph, node)
        weight = node.inputs[1] if node.op_type == "MatMul" and len(node.inputs) > 1 else None
        tensor = None if weight is None else weight.const_value
        if not isinstance(tensor, PlannedTensor) or not isinstance(tensor.expression, (StackedWeight, Smoothed)):
            continue
        tied = any(source.name == TABLE for source in tensor.expression.sources)
        shape, origin = tensor.expression.shape, tensor.expression.origin
        scheme = table_scheme(precision) if tied else scheme_for(precision, *shape, rounded=origin in rounded)
        if origin in excluded or scheme is None:
            continue
        dequantized = dequantize(graph, node, tensor.expression, scheme, tensor.dtype)
        node.replace_input_with(1, dequantized)
        quantized.append(origin)
    quantized += _quantize_embeddings(graph, precision, excluded, table_in_rows)
    _drop_unused_weights(graph)
    return quantized


def _is_behind_pooling(gemm: ir.Node) -> bool:
    expression = expression_of(gemm.inputs[1])
    return isinstance(expression, StackedWeight) and is_behind_pooling(expression)


def dequantize(graph: ir.Graph, node: ir.Node, base: Matrix, scheme: Scheme, compute: ir.DataType) -> ir.Value:
    """DequantizeLinear of ``base`` in front of ``node``; [in, out] in the compute dtype."""
    values = _initializer(graph, QuantizedMatrix(base, scheme, "values"), scheme.dtype)
    scales = _initializer(graph, QuantizedMatrix(base, scheme, "scales"), compute)
    attributes = {"axis": 0, "block_size": scheme.block} if scheme.block else {"axis": 1}
    tape = ir.tape.Tape()
    output = tape.op("DequantizeLinear", [values, scales], attributes)
    tape.nodes[0].name = f"{node.name}/dequantize"
    output.name = f"{node.name}/dequantized"
    graph.insert_before(node, tape.nodes)
    return output


def _gemm_to_matmul(graph: ir.Graph, gemm: ir.Node) -> ir.Node:
    """The tied output layer, Gemm(rows, table^T), as MatMul with the transposed weight: one layout for all matrices."""
    rows, table = gemm.inputs[0], gemm.inputs[1]
    tensor = None if table is None else table.const_value
    assert rows is not None
    assert isinstance(tensor, PlannedTensor)
    assert isinstance(tensor.expression, StackedWeight)
    expression = tensor.expression.transpose()
    weight = planned_value(expression, tensor.dtype, expression.key)
    graph.register_initializer(weight)
    tape = ir.tape.Tape()
    output = tape.op("MatMul", [rows, weight])
    return _replace(graph, gemm, tape, output, gemm.name or "")


def _replace_relu(graph: ir.Graph, relu: ir.Node) -> None:
    hidden = relu.inputs[0]
    weight = _weight_behind(hidden)
    assert hidden is not None
    assert weight is not None
    tape = ir.tape.Tape()
    if weight.dtype == ir.DataType.FLOAT:
        _replace(graph, relu, tape, tape.op("LeakyRelu", [hidden], {"alpha": 0.0}), f"{relu.name}/leaky")
        return
    zero = constant_value(np.zeros((), dtype=weight.dtype.numpy()), "relu_floor")
    graph.initializers.setdefault("relu_floor", zero)
    output = tape.op("Max", [hidden, graph.initializers["relu_floor"]])
    _replace(graph, relu, tape, output, f"{relu.name}/max")


def _weight_behind(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The weight (or its scales) of the MatMul that made ``value``: it tells the compute dtype."""
    matmul = None if value is None else value.producer()
    weight = None if matmul is None else matmul.inputs[1]
    if weight is not None and weight.const_value is None and weight.producer() is not None:
        weight = weight.producer().inputs[1]  # type: ignore[union-attr]
    return None if weight is None else weight.const_value


def _replace(graph: ir.Graph, old: ir.Node, tape: ir.tape.Tape, output: ir.Value, name: str) -> ir.Node:
    """Put the tape's nodes in the place of ``old``; returns the last of them."""
    ir.convenience.replace_nodes_and_values(graph, old, [old], tape.nodes, [old.outputs[0]], [output])
    for index, node in enumerate(tape.nodes):
        node.name = name if index == len(tape.nodes) - 1 else f"{name}/{node.op_type}_{index}"
        for position, value in enumerate(node.outputs):
            value.name = f"{node.name}:{position}"
    return tape.nodes[-1]


def multiplies_by_table(model: ir.Model) -> bool:
    """Whether the graph's output layer is the token table, in floating point still."""
    expressions = (expression_of(node.inputs[1]) for node in model.graph if node.op_type in ("MatMul", "Gemm"))
    return any(
        source.name == TABLE
        for expression in expressions
        if isinstance(expression, StackedWeight)
        for source in expression.sources
    )


def _quantize_embeddings(graph: ir.Graph, precision: Precision, excluded: frozenset[str], in_rows: bool) -> list[str]:
    """The token table, int8 whatever the bits of the rest: a row is read once, and its error enters the residual."""
    for node in list(graph):
        table = node.inputs[0] if node.op_type == "Gather" else None
        tensor = None if table is None else table.const_value
        if (
            not isinstance(tensor, PlannedTensor)
            or not isinstance(tensor.expression, StackedWeight)
            or tensor.expression.key in excluded
        ):
            continue
        base, ids = tensor.expression if in_rows else tensor.expression.transpose(), node.inputs[1]
        assert ids is not None
        _embed(graph, node, base, ids, table_scheme(precision), tensor.dtype)
        return [tensor.expression.key]
    return []


def _embed(
    graph: ir.Graph, gather: ir.Node, base: StackedWeight, ids: ir.Value, scheme: Scheme, compute: ir.DataType
) -> None:
    """[batch, length] ids -> [batch, length, d_model] in the compute dtype; ``base``: the table, or its transpose."""
    values = _initializer(graph, QuantizedMatrix(base, scheme, "values"), scheme.dtype, "embedding.")
    scales = _initializer(graph, QuantizedMatrix(base, scheme, "scales"), compute, "embedding.")
    unit = constant_value(np.ones((), dtype=compute.numpy()), "unit_scale")
    last = constant_value(np.array([-1], np.int64), "last_axis")
    for constant in (unit, last):
        graph.initializers.setdefault(str(constant.name), constant)
    unit, last = graph.initializers["unit_scale"], graph.initializers["last_axis"]
    tape = ir.tape.Tape()
    codes = tape.op("Gather", [values, ids], {"axis": int(base.transposed)})
    rows = tape.op("DequantizeLinear", [codes, unit])
    if base.transposed:
        rows = tape.op("Transpose", [rows], {"perm": [1, 2, 0]})
    row_scales = tape.op("Unsqueeze", [tape.op("Gather", [scales, ids], {"axis": 0}), last])
    output = tape.op("Mul", [rows, row_scales])
    _replace(graph, gather, tape, output, f"{gather.name}/embedding")


def _initializer(graph: ir.Graph, expression: QuantizedMatrix, dtype: ir.DataType, prefix: str = "") -> ir.Value:
    """The graph's value for one half of a matrix. A second name for the same bytes of the file costs nothing, and
    ONNX Runtime fuses DequantizeLinear only where no other node reads its constant.
    """
    name = prefix + expression.key
    if name not in graph.initializers:
        graph.register_initializer(planned_value(expression, dtype, name))
    return graph.initializers[name]


def _drop_unused_weights(graph: ir.Graph) -> None:
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        graph.initializers.pop(name)

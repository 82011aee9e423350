"""Check 1: fused operators against their numpy references, fused blocks against the unfused trace.

Every operator is judged where it stands: the fused block runs once in ONNX Runtime with the values between operators as
further outputs, and each operator's own inputs are handed to the numpy reference of its contract.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from t5edge.bundle.architecture import Architecture
from t5edge.exporter.checkpoint.random_weights import RandomStore
from t5edge.exporter.graph.weight_expressions import evaluate
from t5edge.kernels.attention.contract import attention
from t5edge.kernels.block import OPSET, Block, BlockKind
from t5edge.kernels.cross_kv.contract import cross_kv
from t5edge.kernels.gated_ffn.contract import gated_ffn
from t5edge.kernels.packed_qkv.contract import packed_projection
from t5edge.kernels.position_bias.contract import position_bias
from t5edge.kernels.position_bias.fusion import distances, look_up, table_index
from t5edge.kernels.relu_ffn.contract import ffn
from t5edge.kernels.rms_norm.contract import rms_norm
from t5edge.kernels.weights import PlannedTensor, StackedWeight
from t5edge.parity.measures import relative_error

SIZES = {"batch": 2, "source": 9, "target": 3, "past": 4}
"""Small, and no two equal. Operators have no other size-dependent branch."""
SEED = 0

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Operator:
    """A fused operator found in a block: the values that go in and come out, and its numpy reference."""

    name: str
    inputs: Sequence[ir.Value]
    outputs: Sequence[ir.Value]
    reference: Callable[[Arrays], Arrays]


def operator_errors(blocks: Mapping[BlockKind, Block], architecture: Architecture) -> dict[str, float]:
    """Largest relative error of each fused operator against its contract, by name; float32, random weights."""
    errors = {"position_bias": position_bias_error(architecture)}
    for kind, block in blocks.items():
        model = with_weights(block.model, kind, architecture)
        operators = list(find_operators(model.graph, architecture))
        values = {id(v): v for op in operators for v in (*op.inputs, *op.outputs)}
        found = _run_exposed(model, list(values.values()), block_inputs(model.graph, kind, architecture))
        known = dict(zip(values, found, strict=True))
        for operator in operators:
            expected = operator.reference([known[id(value)] for value in operator.inputs])
            pairs = zip(operator.outputs, expected, strict=True)
            worst = max(relative_error(known[id(value)], array) for value, array in pairs)
            errors[operator.name] = max(worst, errors.get(operator.name, 0.0))
    return errors


def block_error(block: Block, architecture: Architecture) -> float:
    """Largest relative error of an output of the fused block against the block as traced; float32, random weights."""
    assert block.traced is not None, "this block has lost its trace"
    runs = []
    for model in (block.traced, block.model):
        weighted = with_weights(model, block.kind, architecture)
        feeds = block_inputs(weighted.graph, block.kind, architecture)
        runs.append(_run(weighted, feeds))
    unfused, fused = runs
    return max(relative_error(value, expected) for value, expected in zip(fused, unfused, strict=True))


def with_weights(model: ir.Model, kind: BlockKind, architecture: Architecture) -> ir.Model:
    """A copy whose expressions are followed over random weights of layer 0, float32."""
    store = RandomStore(architecture, SEED)
    prefix = f"{'encoder' if kind == 'encoder' else 'decoder'}.block.0."
    copy = model.clone()
    for value in copy.graph.initializers.values():
        if isinstance(value.const_value, PlannedTensor):
            built = evaluate(value.const_value.expression, lambda name: store.read(prefix + name))
            value.meta["expression"] = value.const_value.expression
            value.const_value = ir.tensor(np.ascontiguousarray(built.numpy()), name=value.name)
    return copy


def block_inputs(graph: ir.Graph, kind: BlockKind, architecture: Architecture) -> dict[str, np.ndarray]:
    """Random inputs of a traced block, float32: hidden states, an additive mask that hides keys, keys and values."""
    s, a = SIZES, architecture
    random = np.random.default_rng(SEED)
    by_kind: dict[BlockKind, list[tuple[int, ...]]] = {
        "encoder": [(s["batch"], s["source"], a.d_model), (s["batch"], a.num_heads, s["source"], s["source"])],
        "cross_kv": [(s["batch"], s["source"], a.d_model)],
        "decoder": [
            (s["batch"], s["target"], a.d_model),
            (s["batch"], a.num_heads, s["target"], s["past"] + s["target"]),
            (s["batch"], a.num_heads, s["target"], s["source"]),
            *[(s["batch"], a.num_heads, length, a.d_kv) for length in (s["past"],) * 2 + (s["source"],) * 2],
        ],
    }
    feeds: dict[str, np.ndarray] = {}
    for value, shape in zip(graph.inputs, by_kind[kind], strict=True):
        assert value.name is not None
        feeds[value.name] = random.standard_normal(shape).astype(np.float32)
        if "bias" in value.name:
            feeds[value.name][..., -1, -2:] = np.finfo(np.float32).min
    return feeds


def find_operators(graph: ir.Graph, architecture: Architecture) -> Iterator[Operator]:
    """Every fused operator of a weighted block."""
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        roles = _roles(node)
        if node.op_type == "RMSNormalization":
            epsilon = node.attributes["epsilon"].as_float()
            yield Operator("rms_norm", inputs, node.outputs, partial(_rms_norm, epsilon))
        elif node.op_type == "Attention":
            yield Operator("attention", inputs, [_end(node.outputs[0], "Transpose", "Reshape")], _attention)
        elif roles and roles[0] in ("q", "k", "v"):
            name = {3: "packed_qkv", 2: "cross_kv", 1: "cross_query"}[len(roles)]
            heads = _end(node.outputs[0], "Reshape", "Transpose")
            ends = _only_user(heads).outputs if len(roles) > 1 else [heads]
            yield Operator(name, inputs, ends, partial(_projection, len(roles), architecture.num_heads))
        elif roles and roles[0] in ("wi", "wi_0"):
            last = next(other for other in graph if _roles(other) == ["wo"])
            assert last.inputs[1] is not None
            name = "gated_ffn" if architecture.gated else "relu_ffn"
            yield Operator(name, [*inputs, last.inputs[1]], last.outputs, partial(_ffn, architecture))


def _rms_norm(epsilon: float, inputs: Arrays) -> Arrays:
    x, weight = inputs
    return [rms_norm(x, weight, epsilon)]


def _attention(inputs: Arrays) -> Arrays:
    return [attention(*inputs)]


def _projection(count: int, heads: int, inputs: Arrays) -> Arrays:
    weights = tuple(np.split(inputs[1].astype(np.float64), count, axis=1))
    if count == 2:
        return list(cross_kv(inputs[0], weights[0], weights[1], heads))
    return list(packed_projection(inputs[0], weights, heads))


def _ffn(architecture: Architecture, inputs: Arrays) -> Arrays:
    x, wi, wo = inputs
    if architecture.gated:
        wi_0, wi_1 = np.split(wi, 2, axis=1)
        return [gated_ffn(x, wi_0, wi_1, wo, architecture.activation)]
    return [ffn(x, wi, wo, architecture.activation)]


def _roles(node: ir.Node) -> list[str]:
    """What the weight of a MatMul is made of: q, k, v, o, wi, wi_0, wi_1, wo; empty for other nodes."""
    weight = node.inputs[1] if node.op_type == "MatMul" else None
    expression = None if weight is None else weight.meta.get("expression")
    sources = expression.sources if isinstance(expression, StackedWeight) else ()
    return [source.name.split(".")[-2] for source in sources]


def _only_user(value: ir.Value) -> ir.Node:
    (use,) = value.uses()
    return use.node


def _end(value: ir.Value, *op_types: str) -> ir.Value:
    """The value at the end of a chain of such nodes behind ``value``."""
    for op_type in op_types:
        value = next(use.node for use in value.uses() if use.node.op_type == op_type).outputs[0]
    return value


def position_bias_error(architecture: Architecture) -> float:
    """The bias nodes as both graphs hold them, past included, against the contract; random table, float32."""
    random = np.random.default_rng(SEED)
    worst = 0.0
    for queries, past, causal in ((150, None, False), (1, 140, True), (150, 0, True), (3, 4, True)):
        last = 1 if causal else architecture.max_distance
        table = random.standard_normal((architecture.num_heads, architecture.max_distance + last + 1))
        keys = queries + (past or 0)
        model = _bias_model(architecture.max_distance, last, past is not None)
        feeds: dict[str, np.ndarray] = {"table": table.astype(np.float32), "queries": np.array(queries)}
        if past is not None:
            feeds = {**feeds, "queries": np.array(keys), "past": np.array(past)}
        found = _run(model, feeds)[0][0]
        expected = position_bias(table, queries, keys, past or 0, architecture.max_distance, causal)
        worst = max(worst, relative_error(found, expected.astype(np.float32)))
    return worst


def _bias_model(max_distance: int, last: int, with_past: bool) -> ir.Model:
    scalar = ir.TensorType(ir.DataType.INT64)
    queries = ir.Value(name="queries", type=scalar, shape=ir.Shape([]))
    past = ir.Value(name="past", type=scalar, shape=ir.Shape([])) if with_past else None
    table = ir.Value(name="table", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["heads", "distances"]))
    tape = ir.tape.Tape()
    index = table_index(tape, distances(tape, queries, queries, past), max_distance, last)
    bias = look_up(tape, table, index)
    bias.name, bias.type = "bias", ir.TensorType(ir.DataType.FLOAT)
    inputs = [table, queries, *([past] if past is not None else [])]
    constants = {v.name: v for node in tape.nodes for v in node.inputs if v is not None and v.const_value is not None}
    for node in tape.nodes:
        for place, value in enumerate(node.inputs):
            if value is not None and value.const_value is not None:
                node.replace_input_with(place, constants[value.name])
    graph = ir.Graph(
        inputs, [bias], nodes=list(tape.nodes), initializers=list(constants.values()), opset_imports={"": OPSET}
    )
    graph.name = "position_bias"
    return ir.Model(graph, ir_version=10)


def _run_exposed(model: ir.Model, values: Sequence[ir.Value], feeds: Mapping[str, np.ndarray]) -> Arrays:
    """The given values of a run: inputs and weights as they are, the others as outputs of the graph."""
    graph = model.graph
    fresh = [v for v in values if v.const_value is None and v not in graph.inputs]
    graph.outputs.clear()
    for index, value in enumerate(fresh):
        value.name, value.type = f"exposed_{index}", ir.TensorType(ir.DataType.FLOAT)
        graph.outputs.append(value)
    computed = dict(zip(map(id, fresh), _run(model, feeds), strict=True))
    return [_known(value, computed, feeds) for value in values]


def _known(value: ir.Value, computed: Mapping[int, np.ndarray], feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    if id(value) in computed:
        return computed[id(value)]
    if value.const_value is not None:
        return value.const_value.numpy()
    return feeds[str(value.name)]


def _run(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> Arrays:
    import onnxruntime

    from t5edge.runtime.onnxruntime.sessions import session_options

    data = ir.to_proto(model).SerializeToString()
    session: Any = onnxruntime.InferenceSession(data, session_options(), providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))

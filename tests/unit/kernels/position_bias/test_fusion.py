"""The nodes of the position bias against its contract, in a whole pass and in cached steps."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from t5edge.kernels.block import OPSET
from t5edge.kernels.position_bias.contract import position_bias
from t5edge.kernels.position_bias.fusion import distances, look_up, table_index

HEADS, MAX_DISTANCE = 3, 20


def bias(table: np.ndarray, queries: int, keys: int, past: int | None, last: int) -> np.ndarray:
    """[1, heads, queries, keys] from the nodes, run by ONNX Runtime."""
    tape = ir.tape.Tape()
    scalars = [
        ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(())) for name in ("q", "k", "p")
    ]
    given = ir.Value(name="table", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(table.shape))
    distance = distances(tape, scalars[0], scalars[1], None if past is None else scalars[2])
    output = look_up(tape, given, table_index(tape, distance, MAX_DISTANCE, last))
    output.name, output.type = "bias", ir.TensorType(ir.DataType.FLOAT)
    constants = {v.name: v for node in tape.nodes for v in node.inputs if v is not None and v.const_value is not None}
    for node in tape.nodes:
        for index, value in enumerate(node.inputs):
            if value is not None and value.name in constants:
                node.replace_input_with(index, constants[value.name])
    graph = ir.Graph(
        [given, *scalars],
        [output],
        nodes=tape.nodes,
        initializers=list(constants.values()),
        opset_imports={"": OPSET},
        name="bias",
    )
    session = onnxruntime.InferenceSession(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString())
    lengths = {"q": queries, "k": keys, "p": past or 0}
    feeds = {"table": table, **{name: np.array(length) for name, length in lengths.items()}}
    return np.asarray(session.run(None, feeds)[0])


@pytest.mark.parametrize(
    ("queries", "keys", "past", "causal"),
    [(50, 50, None, False), (7, 7, 0, True), (1, 60, 59, True), (3, 24, 21, True)],
)
def test_the_nodes_are_the_contract(queries: int, keys: int, past: int | None, causal: bool) -> None:
    last = 1 if causal else MAX_DISTANCE
    table = np.random.default_rng(0).standard_normal((HEADS, MAX_DISTANCE + last + 1)).astype(np.float32)
    expected = position_bias(table, queries, keys, past or 0, MAX_DISTANCE, causal)
    np.testing.assert_array_equal(bias(table, queries, keys, past, last)[0], expected)

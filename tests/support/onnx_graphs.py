"""Small graphs for fusion tests: write the traced pattern by hand, run it before and after on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import onnxruntime

from t5edge.kernels.block import OPSET, Block, BlockKind
from t5edge.kernels.weights import PlannedTensor, StackedWeight, planned_value, stack_of

Arrays = Mapping[str, np.ndarray]


class Sketch:
    """A graph under construction; ``weight`` makes planned initializers as the tracer leaves them."""

    def __init__(self, kind: BlockKind = "encoder") -> None:
        self.kind = kind
        self.tape = ir.tape.Tape()
        self.inputs: list[ir.Value] = []
        self.weights: list[ir.Value] = []

    def input(self, name: str, *shape: int | str) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
        self.inputs.append(value)
        return value

    def weight(self, name: str, *shape: int) -> ir.Value:
        """``shape`` is the checkpoint's, [out, in]; matrices come out transposed, in MatMul's layout."""
        expression = stack_of(name, shape)
        if len(shape) == 2:
            expression = expression.transpose()
        value = planned_value(expression, ir.DataType.FLOAT, f"block.{name}")
        self.weights.append(value)
        return value

    def number(self, value: float) -> ir.Value:
        return self.tape.op("Constant", [], {"value": ir.tensor(np.array(value, np.float32))})

    def ints(self, *values: int) -> ir.Value:
        return self.tape.op("Constant", [], {"value_ints": list(values)})

    def op(self, op_type: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        return self.tape.op(op_type, list(inputs), attributes)

    def block(self, *outputs: ir.Value) -> Block:
        graph = ir.Graph(
            self.inputs,
            list(outputs),
            nodes=self.tape.nodes,
            initializers=self.weights,
            opset_imports={"": OPSET},
            name="sketch",
        )
        return Block(self.kind, ir.Model(graph, ir_version=10))


def stacked(expression: object, weights: Arrays) -> np.ndarray:
    """The numbers of a ``StackedWeight``, from tensors in the checkpoint's layout."""
    assert isinstance(expression, StackedWeight)
    rows = np.concatenate([weights[source.name] * np.float32(source.scale) for source in expression.sources])
    return np.ascontiguousarray(rows.T if expression.transposed else rows)


def run(block: Block, feeds: Arrays, weights: Arrays) -> list[np.ndarray]:
    """Run a block whose planned weights take their numbers from ``weights`` (checkpoint layout)."""
    model = block.model.clone()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, PlannedTensor):
            value.const_value = ir.tensor(stacked(tensor.expression, weights), name=value.name)
    for index, output in enumerate(model.graph.outputs):
        output.name = f"output_{index}"
        output.type = output.type or ir.TensorType(ir.DataType.FLOAT)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))

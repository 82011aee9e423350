"""Traced blocks kept in a folder: tracing takes seconds, and a block depends on a few facts of its architecture."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from support.shared import once
from t5edge.bundle.architecture import Architecture
from t5edge.exporter.graph import trace
from t5edge.kernels.block import Block, BlockKind
from t5edge.kernels.weights import PlannedTensor, WeightExpression, planned_value

DEPENDS_ON = ("d_model", "d_kv", "d_ff", "num_heads", "activation", "gated", "norm_epsilon")
Tracer = Callable[[Architecture, BlockKind], Block]


@contextmanager
def shared_traces(folder: Path) -> Iterator[None]:
    """Let every export trace only what no process of this test run has traced; inside another one, what that does."""
    if getattr(trace.trace_block, "__module__", "") == __name__:  # tests of two folders in one process
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "trace_block", kept_in(folder, trace.trace_block))
        yield


def kept_in(folder: Path, tracer: Tracer) -> Tracer:
    """``tracer``, asked once for each block by all processes that share ``folder``."""

    def trace_block(architecture: Architecture, kind: BlockKind) -> Block:
        facts = repr((kind, *(getattr(architecture, name) for name in DEPENDS_ON)))
        path = folder / hashlib.sha256(facts.encode()).hexdigest()[:16]
        once(path, lambda file: file.write_bytes(to_bytes(tracer(architecture, kind).model)))
        model = from_bytes(path.read_bytes())
        return Block(kind, model, model.clone())

    return trace_block


def to_bytes(model: ir.Model) -> bytes:
    """A traced model whose initializers are expressions: as ONNX, with the expressions beside it."""
    model = model.clone()
    plans: list[tuple[str, WeightExpression, ir.DataType]] = []
    for name, value in list(model.graph.initializers.items()):
        assert isinstance(value.const_value, PlannedTensor)
        plans.append((name, value.const_value.expression, value.const_value.dtype))
        model.graph.initializers.pop(name)
        model.graph.inputs.append(value)
    return pickle.dumps((ir.to_proto(model).SerializeToString(), plans))


def from_bytes(data: bytes) -> ir.Model:
    """The model of ``to_bytes``."""
    proto, plans = pickle.loads(data)
    model = ir.from_proto(onnx.ModelProto.FromString(proto))
    inputs = {value.name: value for value in model.graph.inputs}
    for name, expression, dtype in plans:
        planned = planned_value(expression, dtype, name)
        ir.convenience.replace_all_uses_with(inputs[name], planned)
        model.graph.inputs.remove(inputs[name])
        model.graph.register_initializer(planned)
    return model

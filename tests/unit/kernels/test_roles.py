from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from t5edge.exporter.graph.portable import rewrite
from t5edge.kernels.roles import attentions, norms
from t5edge.kernels.values import constant_value

WIDTH = 8


def sketch(dtype: ir.DataType) -> ir.Model:
    """A norm whose result are the queries, keys and values of an attention."""
    x, mask = ir.val("x", dtype, [2, 3, 5, WIDTH]), ir.val("mask", dtype, [1, 3, 5, 5])
    weight = constant_value(np.ones(WIDTH, dtype.numpy()), "w")
    tape = ir.tape.Tape()
    normed = tape.op("RMSNormalization", [x, weight], {"axis": -1, "epsilon": 0.25}, name="norm_0")
    key = tape.op("Relu", [normed], output=ir.val("key"))
    out = tape.op("Attention", [normed, key, normed, mask], {"scale": 1.0}, name="attention_1", output=ir.val("out"))
    out.type = ir.TensorType(dtype)
    graph = ir.Graph([x, mask], [out], nodes=tape.nodes, initializers=[weight], opset_imports={"": 23}, name="sketch")
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16])
def test_norms_and_attentions_are_found_in_both_forms(dtype: ir.DataType, portable: bool) -> None:
    model = sketch(dtype)
    if portable:
        rewrite(model)
    ((norm,), (attention,)) = (tuple(find(model.graph)) for find in (norms, attentions))
    assert (norm.name, norm.x.name, norm.epsilon) == ("norm_0", "x", 0.25)
    assert (attention.name, attention.key.name, attention.mask.name) == ("attention_1", "key", "mask")
    assert attention.out is model.graph.outputs[0]


def test_another_root_is_no_norm() -> None:
    x = ir.val("x", ir.DataType.FLOAT, [2])
    tape = ir.tape.Tape()
    tape.op("Sqrt", [tape.op("Add", [x, constant_value(np.ones((), np.float32), "one")])])
    tape.op("Sqrt", [x])
    assert list(norms(tape.nodes)) == []

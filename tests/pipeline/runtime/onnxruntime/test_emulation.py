"""Rounding after every operator: what hardware with 16-bit storage and float32 accumulation computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from support.bundles import Workshop
from t5edge.bundle.manifest import Manifest
from t5edge.kernels.values import constant_value
from t5edge.runtime.onnxruntime.emulation import ROUNDING_REMOVERS, emulate, open_rounded, widen
from t5edge.runtime.onnxruntime.sessions import session_options

TORCH = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def chain(compute: str) -> ir.Model:
    """y = relu(x @ w) + x, and how many rows x has."""
    dtype = ir.DataType[compute.upper()]
    x = ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape(["rows", 16]))
    weight = constant_value(np.linspace(-2, 2, 256).reshape(16, 16).astype(dtype.numpy()), "w")
    tape = ir.tape.Tape()
    y = tape.op("Add", [tape.op("Relu", [tape.op("MatMul", [x, weight])]), x])
    rows = tape.op("Shape", [x])
    for value, name, kind, shape in ((y, "y", dtype, ["rows", 16]), (rows, "rows_out", ir.DataType.INT64, [2])):
        value.name, value.type, value.shape = name, ir.TensorType(kind), ir.Shape(shape)
    graph = ir.Graph(
        [x], [y, rows], nodes=list(tape.nodes), initializers=[weight], opset_imports={"": 23}, name="chain"
    )
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("rounds", [True, False])
def test_what_a_graph_computes_in_float32_by_itself_is_rounded_once(rounds: bool) -> None:
    """Portable graphs square in float32 between two casts; what they cast back is narrow, and no step before is."""
    x, dtype = ir.val("x", ir.DataType.FLOAT16, ["rows", 16]), ir.DataType.FLOAT16
    tape = ir.tape.Tape()
    wide = tape.op("Cast", [x], {"to": ir.DataType.FLOAT})
    y = tape.op("Cast", [tape.op("Sqrt", [tape.op("Mul", [wide, wide])])], {"to": dtype})
    y.name, y.type = "y", ir.TensorType(dtype)
    model = ir.Model(ir.Graph([x], [y], nodes=tape.nodes, opset_imports={"": 17}, name="square"), ir_version=8)
    values = np.linspace(200, 60000, 32, dtype=np.float32).reshape(2, 16)  # squares beyond float16
    (found,) = run(emulate(model, "float16") if rounds else widen(model, "float16"), values)
    expected = values.astype(np.float16).astype(np.float32) if rounds else values
    np.testing.assert_allclose(found, expected, rtol=1e-7)


def run(model: ir.Model, x: np.ndarray) -> list[np.ndarray]:
    session: Any = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(),
        session_options(1),
        providers=["CPUExecutionProvider"],
        disabled_optimizers=ROUNDING_REMOVERS,
    )
    return list(session.run(None, {"x": x}))


@pytest.mark.parametrize("compute", ["float16", "bfloat16"])
def test_each_result_is_rounded_once_and_computed_in_float32(compute: str) -> None:
    narrow = TORCH[compute]
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)).to(narrow)
    weight = torch.linspace(-2, 2, 256, dtype=torch.float64).reshape(16, 16).to(narrow)
    product = (x.float() @ weight.float()).to(narrow).float()
    expected = (product.relu() + x.float()).to(narrow).float()
    found, shape = run(emulate(chain(compute), compute), x.float().numpy())
    assert found.dtype == np.float32
    np.testing.assert_array_equal(shape, [5, 16])
    # Sums run in another order: a result at the edge between two 16-bit numbers may fall to either side.
    assert np.mean(found != expected.numpy()) < 0.05
    np.testing.assert_array_equal(found, torch.from_numpy(found).to(narrow).float().numpy())


def test_float16_overflows_where_hardware_would() -> None:
    x = np.full((1, 16), 3e4, np.float32)
    found, _ = run(emulate(chain("float16"), "float16"), x)
    assert np.isinf(found).any()
    assert np.isfinite(run(emulate(chain("bfloat16"), "bfloat16"), x)[0]).all()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_weights_stay_in_their_file(demo: Workshop, precision: str) -> None:
    folder = demo.bundle(precision, "concat")
    compute = Manifest.read(folder).precision.compute
    model = emulate(ir.load(folder / "decoder.onnx"), compute)
    assert len(ir.to_proto(model).SerializeToString()) < 200_000
    assert (folder / "weights.safetensors").stat().st_size > 2_000_000
    assert sum(isinstance(value.const_value, ir.ExternalTensor) for value in model.graph.initializers.values()) > 10
    assert all(
        port.dtype in (ir.DataType.FLOAT, ir.DataType.INT64) for port in (*model.graph.inputs, *model.graph.outputs)
    )


def test_a_rounded_bundle_runs_like_any_other(demo: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = demo.bundle("fp16", "concat")
    monkeypatch.chdir(tmp_path)  # the weights are found from the bundle, not from here
    model = open_rounded(folder, Manifest.read(folder), session_options(1))
    ids, mask = np.array([[7, 9, 1], [5, 1, 0]]), np.array([[1, 1, 1], [1, 1, 0]])
    state = model.encode(ids, mask)
    first, second = (model.step(state, np.array([[token], [token]])).copy() for token in (0, 4))
    assert first.shape == second.shape == (2, 1, demo.checkpoint.architecture.vocab_size)
    assert np.isfinite(second).all()

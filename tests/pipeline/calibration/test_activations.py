from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from support.quantized_models import Model, row_with, run_encoder
from t5edge import pipeline
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.precision import precision
from t5edge.calibration.plan import Settings, apply_plan, make_plan
from t5edge.exporter.graph.rescale import Rescale, StackScale
from t5edge.options import ExportOptions
from t5edge.progress import Silent
from t5edge.runtime.onnxruntime.sessions import session_options


def operators(folder: Path, graph: str, tmp_path: Path) -> Counter[str]:
    """What ONNX Runtime makes of a graph at session load."""
    options = session_options()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(folder / f"{graph}.onnx"), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node)


@pytest.mark.parametrize("name", ["plain", "relu"])
def test_onnxruntime_takes_integer_kernels_everywhere(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model: Model = request.getfixturevalue(name)
    folder, _ = model.bundle(f"kernels-{name}", precision("int8"))
    a = model.checkpoint.architecture
    encoder = operators(folder, "encoder", tmp_path)
    assert encoder["MatMulIntegerToFloat"] == 4 * a.encoder_layers + a.decoder_layers
    assert encoder["MatMul"] == encoder["MatMulNBits"] == 0
    decoder = operators(folder, "decoder", tmp_path)
    assert decoder["MatMulNBits"] == 6 * a.decoder_layers + 1
    assert decoder["MatMul"] == decoder["MatMulIntegerToFloat"] == 0


def test_a_row_may_quantize_the_decoders_inputs_too(plain: Model, tmp_path: Path) -> None:
    row = row_with(activations=("encoder", "decoder"))
    folder, plan = plain.bundle("both", row)
    layers = plain.checkpoint.architecture.decoder_layers
    assert operators(folder, "decoder", tmp_path)["MatMulIntegerToFloat"] == 6 * layers
    assert len([name for name in plan.choices if name.startswith("decoder") and "cross_kv" not in name]) == 6 * layers
    assert float(plain.errors(folder).kl.mean()) < 0.05


@pytest.mark.parametrize("name", ["plain", "relu"])
def test_ranges_follow_the_rescale_of_the_ffn(name: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(name)
    a, row = model.checkpoint.architecture, precision("int8")
    model.graphs(row)
    scale = StackScale(k=3, t=(2,) * a.encoder_layers, t_source="wi_1" if a.gated else "wi")
    found, form = [], ExportOptions("x").form
    for title, rescale in (("as-it-is", Rescale()), ("rescaled", Rescale(encoder=scale))):
        graphs = pipeline.assemble_graphs(model.checkpoint, model.blocks(), row, rescale, form)
        plan = make_plan(model.checkpoint, graphs, row, model.texts, Silent(), Settings(gate=False))
        apply_plan(plan, graphs)
        found.append(run_encoder(model.write(f"ranges-{name}-{title}", graphs, row), model.texts.gate))
    for port, value in found[0].items():
        assert np.array_equal(value, found[1][port]), port


def test_every_pair_is_symmetric_and_has_a_scale_of_its_own(plain: Model) -> None:
    folder, _ = plain.bundle("pairs", precision("int8"))
    graph = onnx.load(folder / "encoder.onnx", load_external_data=False).graph
    pairs = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert {node.input[2] for node in pairs} == {"zero_point"}
    assert len({node.input[1] for node in pairs}) == len(pairs)
    inits = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer if not entry.external_data}
    assert inits["zero_point"] == 0
    shared = [float(inits[node.input[1]]) for node in pairs if "cross_kv" in node.name]
    assert len(set(shared)) == len(shared)
    assert max(shared) / min(shared) < 1 + 1e-5


@pytest.mark.parametrize("name", ["int8", "int4-weight"])
def test_a_bundle_in_float16_has_no_float32_left_but_its_logits(relu: Model, name: str) -> None:
    row = precision(name).computing("float16")
    folder, _ = relu.bundle(f"half-{name}", row)
    assert Manifest.read(folder).precision.compute == "float16"
    for graph in ("encoder", "decoder"):
        model = onnx.load(folder / f"{graph}.onnx", load_external_data=False)
        kinds = {tensor.data_type for tensor in model.graph.initializer}
        assert onnx.TensorProto.FLOAT16 in kinds
        assert onnx.TensorProto.FLOAT not in kinds
        ports = {port.name: port.type.tensor_type.elem_type for port in (*model.graph.input, *model.graph.output)}
        assert {name for name, kind in ports.items() if kind == onnx.TensorProto.FLOAT} <= {"logits"}
        casts = [node for node in model.graph.node if node.op_type == "Cast"]
        wide = [node for node in casts if node.attribute[0].i == onnx.TensorProto.FLOAT]
        assert [node.output[0] for node in wide] == (["logits"] if graph == "decoder" else [])
    assert float(relu.errors(folder).kl.mean()) <= (row.max_kl or 0)

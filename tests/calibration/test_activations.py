from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import pytest

from exporter.precision import precision
from exporter.targets.onnxruntime import session_options
from tests.calibration.models import Model, row_with


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

"""Plans against bundles: what was computed from a name is what an export writes and a graph costs."""

from __future__ import annotations

import pytest

from support.exports import GATED, RELU, Exports
from support.tiny_models import find_tiny_model
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.precision import precision
from t5edge.exporter.family.variants import Variant
from t5edge.tools.planning.devices import DeviceSpec
from t5edge.tools.planning.plan import Lengths, plan_variant

DEVICE = DeviceSpec("test", 100.0, {"float": 1.0, "float16": 10.0, "int8": 20.0}, "made up")
SIZES = {"batch": 1, "source": 32, "target": 1, "past": 7}
POINTS = [
    (RELU, "fp32"),
    (GATED, "fp32"),
    (RELU, "fp16"),
    (GATED, "fp16"),
    (RELU, "int8-weight"),
    (RELU, "int4-weight"),
]


@pytest.mark.parametrize(("name", "row"), POINTS)
def test_plans_fit_exported_bundles(exports: Exports, name: str, row: str) -> None:
    """File sizes within a tenth (headers and graphs are estimated), FLOPs and bytes read as ``inspect`` counts them."""
    tiny, out = find_tiny_model(name), exports.bundle(name, row)
    quantization = Manifest.read(out).quantization
    assert quantization is None or not quantization["kept"]
    plan = plan_variant(Variant(tiny.name, tiny.family, tiny.architecture), precision(row), DEVICE, Lengths(32, 7))
    files = sum((out / file).stat().st_size for file in ("weights.safetensors", "encoder.onnx", "decoder.onnx"))
    assert plan.bundle_bytes == pytest.approx(files, rel=0.1)
    recorded = Manifest.read(out).costs or {}
    costs = {graph: recorded[graph].at(SIZES) for graph in ("encoder", "decoder")}
    assert plan.encoder_flops == pytest.approx(costs["encoder"]["flops"], rel=0.001)
    assert plan.decode_flops == pytest.approx(costs["decoder"]["flops"], rel=0.001)
    assert plan.bytes_per_token == pytest.approx(costs["decoder"]["weight_bytes"], rel=0.02)

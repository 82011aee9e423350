"""Plans against numbers counted by hand, and (slow) against exported bundles."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from support.tiny_models import tiny_models
from t5edge.bundle.precision import PRECISIONS, precision
from t5edge.exporter.family.variants import Variant, find_variant, variants
from t5edge.tools.planning.devices import Device
from t5edge.tools.planning.plan import Lengths, encoder_flops, frontier, kv_bytes, plan_variant, roofline

DEVICE = Device("test", 100.0, {"float": 1.0, "float16": 10.0, "int8": 20.0}, "made up")


@pytest.mark.parametrize("name", ["t5-small", "flan-t5-base", "umt5-small", "byt5-small", "t5-efficient-tiny-nl6"])
def test_float32_bytes_are_the_parameters(name: str) -> None:
    row = find_variant(name)
    a = row.architecture
    plan = plan_variant(row, precision("fp32"), DEVICE)
    owners = a.encoder_layers + a.decoder_layers if a.per_layer_bias else 2
    per_stack = (a.encoder_layers, a.decoder_layers) if a.per_layer_bias else (1, 1)
    tables = a.num_heads * (per_stack[0] * 257 + per_stack[1] * 130)
    weights = 4 * (a.parameters - owners * a.num_buckets * a.num_heads + tables)
    assert 0 < plan.bundle_bytes - weights < 1e6
    assert plan.bytes_per_token < weights


def test_t5_small_by_hand() -> None:
    row = find_variant("t5-small")
    plan = plan_variant(row, precision("fp16"), DEVICE, Lengths(512, 64))
    assert plan.kv_bytes_per_token == plan.cross_kv_bytes_per_source_token == 2 * 6 * 512 * 2
    block, cross = 4 * 512 * 512 + 2 * 512 * 2048, 2 * 512 * 512
    assert plan.encoder_flops == 2 * 512 * 6 * (block + cross) + 6 * 4 * 512 * 512 * 512
    decoder = 6 * (6 * 512 * 512 + 2 * 512 * 2048) + 32128 * 512
    assert plan.decode_flops == 2 * decoder + 6 * 4 * (64 + 1 + 512) * 512
    assert plan.bytes_per_token == pytest.approx(2 * decoder, rel=1e-3)
    read = plan.bytes_per_token + (64 + 1 + 512) * plan.kv_bytes_per_token
    assert plan.decode.ms == pytest.approx(read / 100e9 * 1e3)
    assert plan.decode.bound == "memory"
    assert plan.encoder.ms == pytest.approx(plan.encoder_flops / 10e12 * 1e3)
    assert plan.encoder.bound == "compute"
    assert plan.request_ms == pytest.approx(plan.encoder.ms + 64 * plan.decode.ms)


def test_the_roofline_is_the_larger_of_two() -> None:
    assert roofline(1e9, 0, DEVICE, "float").ms == pytest.approx(10.0)
    assert roofline(1e9, 1e12, DEVICE, "float").bound == "compute"
    assert roofline(1e9, 1e12, DEVICE, "int8").ms == pytest.approx(50.0)


def test_narrower_weights_are_read_faster() -> None:
    row = find_variant("flan-t5-large")
    plans = {p.name: plan_variant(row, p, DEVICE) for p in PRECISIONS}
    sizes = [plans[name].bytes_per_token for name in ("int4-weight", "int8-weight", "fp16", "fp32")]
    assert sizes == sorted(sizes)
    assert sizes[1] == pytest.approx(sizes[3] / 4, rel=0.01)
    assert plans["int8"].encoder.ms == pytest.approx(plans["int8-weight"].encoder.ms / 20)
    assert plans["bf16"] == plans["fp16"].__class__(**{**vars(plans["fp16"]), "precision": "bf16"})


def test_every_row_in_every_precision_has_a_plan() -> None:
    for row in variants():
        for p in PRECISIONS:
            plan = plan_variant(row, p, DEVICE)
            assert 0 < plan.bytes_per_token < plan.bundle_bytes
            assert math.isfinite(plan.request_ms)


def test_umt5_and_untied_models_read_the_whole_head() -> None:
    tied, untied = find_variant("t5-base"), find_variant("t5-v1_1-base")
    sizes = [plan_variant(row, precision("fp32"), DEVICE).bytes_per_token for row in (tied, untied)]
    assert min(sizes) > 4 * 32128 * 768
    assert encoder_flops(tied.architecture, 512) == encoder_flops(untied.architecture, 512)
    assert kv_bytes(untied.architecture, precision("fp32")) == 2 * 12 * 768 * 4


def test_the_frontier_leaves_no_better_one_out() -> None:
    plans = [plan_variant(row, precision("fp16"), DEVICE) for row in variants() if row.family == "t5-efficient"]
    best = frontier(plans)
    assert 1 < len(best) < len(plans)
    for plan in plans:
        beaten = [b for b in best if b.parameters >= plan.parameters and b.request_ms <= plan.request_ms]
        assert beaten, plan.name
    assert all(a.parameters < b.parameters and a.request_ms < b.request_ms for a, b in itertools.pairwise(best))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp32", "fp16", "int8-weight", "int4-weight"])
def test_plans_fit_exported_bundles(name: str, tmp_path: Path) -> None:
    """File sizes within a tenth (headers and graphs are estimated), FLOPs and bytes read as ``inspect`` counts them."""
    from support.tiny_models import save_tiny_model
    from t5edge.pipeline import export

    row = precision(name)
    for twin in tiny_models()[:1] if row.quantized else (tiny_models()[0], tiny_models()[5]):
        folder = save_tiny_model(twin, tmp_path / twin.name, seed=0)
        out = tmp_path / f"{twin.name}-{name}"
        bundle = export(str(folder), name, out=out, no_verify=True, target=("onnxruntime",))
        assert not row.quantized or not (bundle.manifest.quantization or {})["kept"]
        plan = plan_variant(Variant(twin.name, twin.family, twin.architecture), row, DEVICE, Lengths(32, 7))
        files = sum((out / file).stat().st_size for file in ("weights.safetensors", "encoder.onnx", "decoder.onnx"))
        assert plan.bundle_bytes == pytest.approx(files, rel=0.1)
        sizes = {"batch": 1, "source": 32, "target": 1, "past": 7}
        assert bundle.manifest.costs is not None
        costs = {graph: bundle.manifest.costs[graph].at(sizes) for graph in ("encoder", "decoder")}
        assert plan.encoder_flops == pytest.approx(costs["encoder"]["flops"], rel=0.001)
        assert plan.decode_flops == pytest.approx(costs["decoder"]["flops"], rel=0.001)
        assert plan.bytes_per_token == pytest.approx(costs["decoder"]["weight_bytes"], rel=0.02)

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from support.quantized_models import Model, row_with
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.precision import precision
from t5edge.calibration.placement import _rounds, holds, max_kl
from t5edge.calibration.plan import Settings
from t5edge.calibration.texts import GATE, SENSITIVITY
from t5edge.calibration.variants import variants_of_a_pass
from t5edge.exporter.checkpoint.open import open_checkpoint
from t5edge.exporter.reference.texts import Batch

LIMITS = {
    "int8": (0.05, 0.97),
    "int8-weight": (0.01, 0.99),
    "int4-weight": (0.2, 0.9),
}


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_the_demo_holds_its_gate_in_the_bundle(demo: Model, name: str) -> None:
    folder, plan = demo.bundle(f"gate-{name}", precision(name))
    errors = demo.errors(folder)
    kl, top1 = LIMITS[name]
    assert float(errors.kl.mean()) <= kl
    assert errors.top1(0.0)[0] >= top1
    assert not plan.excluded
    json.dumps(Manifest.read(folder).quantization, allow_nan=False)


@pytest.mark.parametrize("name", ["google/t5-v1_1-xxl", "google/ul2", "google-t5/t5-11b"])
def test_one_pass_over_a_large_checkpoint_ranks_every_point_and_one_searches(name: str) -> None:
    checkpoint = open_checkpoint(name, random_weights=0)
    a = checkpoint.architecture
    points = 5 * a.encoder_layers + 6 * a.decoder_layers + 2  # qkv, o, wi, wo; the decoder's q, o and keys and values
    for share, variants in ((SENSITIVITY, points), (GATE, len(_rounds(points)[1]))):
        source, target = (np.zeros((share.texts, length), np.int64) for length in (share.source, share.target))
        batch = Batch(source, np.ones_like(source), target)
        assert variants_of_a_pass(checkpoint, batch) >= variants


def test_sensitive_sites_fall_back_until_the_gate_holds(outliers: Model) -> None:
    row = row_with(max_kl=0.02, min_top1=0.9)
    folder, plan = outliers.bundle("fallback", row, Settings(smooth=False))
    assert plan.gate is not None
    assert plan.excluded
    assert len(plan.excluded) < len(plan.points)
    assert holds(row, plan.gate.result)
    assert not holds(row, plan.gate.tried[0][1])
    worst = max(plan.sensitivity, key=lambda name: plan.sensitivity[name].kl)
    assert worst in plan.excluded
    assert float(outliers.errors(folder).kl.mean()) <= 2 * max_kl(row)


@pytest.mark.parametrize("name", ["int8", "int8-weight"])
def test_where_ties_count_sites_fall_back_until_the_best_tokens_agree(outliers: Model, name: str) -> None:
    """Random weights leave many tokens within a rounding of each other, so this is the hardest model for it."""
    row = replace(precision(name), count_ties=True)
    folder, plan = outliers.bundle(f"ties-{name}", row)
    errors = outliers.errors(folder)
    kl, top1 = LIMITS[name]
    assert float(errors.kl.mean()) <= kl
    assert errors.top1(0.0)[0] >= top1
    assert plan.excluded, "without falling back it does not"
    assert plan.gate is not None
    assert plan.gate.tie == 0
    if name == "int8":
        assert len(plan.excluded) < len(plan.points) / 2


def test_an_excluded_point_stays_float_and_its_bytes_are_stated(outliers: Model) -> None:
    row = row_with(max_kl=0.02, min_top1=0.9)
    folder, plan = outliers.bundle("kept", row, Settings(smooth=False))
    model = ir.load(folder / "encoder.onnx")
    floats = {
        node.inputs[1].name: node.inputs[1].const_value.nbytes  # type: ignore[union-attr]
        for node in model.graph
        if node.op_type == "MatMul" and node.inputs[1].const_value is not None  # type: ignore[union-attr]
    }
    excluded = [
        point for point in plan.points if point.name in plan.excluded and point.graph == "encoder" and point.block
    ]
    assert set(floats) == {point.key for point in excluded}
    facts = Manifest.read(folder).quantization or {}
    assert facts["kept"] == sorted(plan.excluded)
    assert facts["kept_bytes"] == sum(point.parameters * 3 for point in plan.points if point.name in plan.excluded)


def test_the_embedding_and_the_output_layer_are_quantization_points_like_others(demo: Model) -> None:
    _, plan = demo.bundle("sites", precision("int4-weight"))
    names = {point.name: point for point in plan.points}
    assert {"embedding", "lm_head", "encoder.block.0.wo", "decoder.block.0.cross_kv"} <= set(names)
    assert names["embedding"].scheme(plan.precision).bits == 8  # type: ignore[union-attr]
    assert names["encoder.block.0.qkv"].scheme(plan.precision).bits == 4  # type: ignore[union-attr]
    assert set(plan.sensitivity) == set(names)
    assert np.isfinite([found.kl for found in plan.sensitivity.values()]).all()

"""An encoder alone is placed by its hidden states: what falls back, and what the page shows of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from support.quantized_models import Model
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.precision import Precision, precision
from t5edge.calibration import speed
from t5edge.calibration.placement import hidden_limits, holds
from t5edge.calibration.plan import Settings, plan_roundings
from t5edge.calibration.variants import HiddenDivergence, measure_variants
from t5edge.exporter.reference.whole import WholeReference
from t5edge.parity.hidden import HiddenErrors, compare_hidden
from t5edge.parity.subject import bundle_outputs
from t5edge.runtime.model import load
from t5edge.tools.report.report import report_page

STRICT = 0.09
"""Relative error of hidden states that int8 without smoothing does not keep on a model with outliers."""


@pytest.fixture(scope="module")
def encoder(outliers: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The encoder of a model whose channels lie far apart."""
    return Model(outliers.checkpoint.encoder_alone(), tmp_path_factory.mktemp("encoder"))


def strict() -> Precision:
    row = precision("int8")
    assert row.quality is not None
    return replace(row, quality=replace(row.quality, hidden=STRICT))


def errors(model: Model, folder: Path) -> HiddenErrors:
    """Of a bundle's hidden states on the gate's texts."""
    batch = model.texts.gate
    ((_, expected),) = WholeReference(model.checkpoint, torch.float32).outputs({"gate": batch})
    return compare_hidden(bundle_outputs(load(folder), batch, cached=False), expected, batch.attention_mask == 1)


def test_sensitive_points_fall_back_until_the_hidden_states_hold(encoder: Model) -> None:
    row = strict()
    folder, plan = encoder.bundle("strict", row, Settings(smooth=False))
    assert plan.gate is not None
    assert 0 < len(plan.excluded) < len(plan.points)
    assert holds(row, plan.gate.result)
    assert not holds(row, plan.gate.tried[0][1])
    worst = max(plan.sensitivity, key=lambda name: plan.sensitivity[name].rank)
    assert worst in plan.excluded
    assert errors(encoder, folder).relative <= STRICT
    unguarded, _ = encoder.bundle("unguarded", row, Settings(smooth=False, gate=False))
    assert errors(encoder, unguarded).relative > STRICT


@pytest.mark.parametrize("name", ["int8", "int8-weight", "int4-weight"])
def test_the_simulation_predicts_the_bundle(encoder: Model, name: str) -> None:
    row = precision(name)
    folder, plan = encoder.bundle(name, row)
    roundings = plan_roundings(plan.points, row, plan.choices)
    variant = frozenset(roundings) - plan.excluded
    (predicted,) = measure_variants(encoder.checkpoint, encoder.texts.gate, plan.points, roundings, [variant])
    assert isinstance(predicted, HiddenDivergence)
    found = errors(encoder, folder)
    assert predicted.positions == found.positions
    pairs = ((found.relative, predicted.hidden), (found.worst("token"), predicted.token))
    assert all(0.5 < measured / expected < 2 for measured, expected in pairs), (
        "onnxruntime rounds the inputs of MatMulNBits too, by blocks"
    )


def test_its_page_shows_hidden_states_and_no_tokens(encoder: Model, tmp_path: Path) -> None:
    made, _ = encoder.bundle("strict", strict(), Settings(smooth=False))
    folder = Path(shutil.copytree(made, tmp_path / "page"))
    facts = Manifest.read(folder).quantization or {}
    assert facts["gate"] | hidden_limits(strict()) == facts["gate"]
    json.dumps(facts, allow_nan=False)
    replace(Manifest.read(folder), speed=speed.measure_speed(folder, Manifest.read(folder))).write(folder)
    page = report_page(folder)
    for said in (
        "relative error",
        "worst token",
        "Relative error of the hidden states when this one matrix",
        "encoder time",
    ):
        assert said in page
    for other in ("KL", "best token", "decoder step time", "Decoder, by layer"):
        assert other not in page


def test_an_encoder_alone_is_timed_against_float32(encoder: Model) -> None:
    folder, _ = encoder.bundle("int8", precision("int8"))
    found = speed.measure_speed(folder, Manifest.read(folder))
    assert found is not None
    assert (found.steps, found.step_speedup, found.quantized.step_ms) == (0, None, None)
    assert found.speedup == found.encoder_speedup > 0
    slower = replace(found, quantized=found.fp32, fp32=replace(found.fp32, encoder_ms=0.1), speedup=0.5)
    said = speed.verdict(slower)
    assert said is not None
    assert said.startswith("slower than float32 on this machine's CPU (encoder ")
    assert "step" not in said

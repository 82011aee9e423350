from __future__ import annotations

from dataclasses import fields, replace

import pytest

from support.exports import GATED, Exports
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.precision import Precision, QuantizedLimits, precision
from t5edge.parity.limits import OwnErrors, quantized_unit
from t5edge.parity.subject import Opener

QUALITY = QuantizedLimits(tie=0.5, hidden=0.2, logits=0.3, position=0.9, repeated=0.01, score_lost=0.1)
QUANTIZED = Precision("of-a-test", "float", weight_bits=8, max_kl=0.01, min_top1=0.99, quality=QUALITY)


def test_float32_has_no_unit_and_float16_has_pytorchs(exports: Exports) -> None:
    assert exports.subject(GATED, "fp32", "3 logits").unit("texts") is None
    subject = exports.subject(GATED, "fp16", "3 logits")
    assert subject.unit("texts") == subject.reference.own["texts"]


def test_a_quantized_rows_unit_is_fixed_and_amplified_as_pytorchs_error_is(exports: Exports) -> None:
    subject = replace(exports.subject(GATED, "bf16", "6"), precision=QUANTIZED)
    granted = quantized_unit(QUALITY)
    assert subject.unit("texts") == granted
    assert subject.repeated == OwnErrors(*[QUALITY.repeated] * len(fields(OwnErrors)))
    unit = subject.unit("source 1")
    assert unit is not None
    own = subject.reference.own
    for entry in fields(OwnErrors):
        ratio = getattr(own["source 1"], entry.name) / (getattr(own["texts"], entry.name) or 1.0)
        expected = getattr(granted, entry.name) * min(max(1.0, ratio), 2.0)
        assert getattr(unit, entry.name) == pytest.approx(expected)


def test_rounding_every_tensor_costs_more_than_onnxruntimes_float16(exports: Exports) -> None:
    """Its CPU provider keeps the residual stream in float32: what the range rung is there for."""
    subject = exports.subject(GATED, "fp16", "3 range")
    assert not subject.emulated
    plain = subject.errors("texts", subject.workload.texts)
    rounded = subject.errors("texts", subject.workload.texts, subject.rounded)
    assert plain.hidden < rounded.hidden


def test_bfloat16_is_emulated_by_the_target_already(exports: Exports) -> None:
    assert exports.subject(GATED, "bf16", "3 logits").emulated


def test_limits_come_from_the_program_whatever_a_bundle_states(exports: Exports) -> None:
    folder = exports.bundle(GATED)
    manifest = Manifest.read(folder)
    loose = replace(manifest, precision=replace(manifest.precision, max_relative_error=9.0, min_top1=0.0))
    assert Opener(folder, loose, "onnxruntime").precision == precision("fp32")

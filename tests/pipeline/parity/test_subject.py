from __future__ import annotations

from dataclasses import fields, replace

import pytest

from support.exports import GATED, Exports
from t5edge.bundle.precision import Precision
from t5edge.parity.limits import OwnErrors

QUANTIZED = Precision("of-a-test", "float", weight_bits=8, max_kl=0.01, min_top1=0.99)


def test_float32_has_no_unit_and_float16_has_pytorchs(exports: Exports) -> None:
    assert exports.subject(GATED, "fp32", "3 logits").unit("texts") is None
    subject = exports.subject(GATED, "fp16", "3 logits")
    assert subject.unit("texts") == subject.reference.own["texts"]


def test_a_quantized_rows_unit_is_its_error_on_texts_amplified_as_pytorchs_is(exports: Exports) -> None:
    subject = replace(exports.subject(GATED, "bf16", "6"), precision=QUANTIZED)
    assert subject.unit("texts") == subject.measured
    unit = subject.unit("source 1")
    assert unit is not None
    own = subject.reference.own
    for entry in fields(OwnErrors):
        ratio = getattr(own["source 1"], entry.name) / getattr(own["texts"], entry.name)
        expected = getattr(subject.measured, entry.name) * max(1.0, ratio)
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

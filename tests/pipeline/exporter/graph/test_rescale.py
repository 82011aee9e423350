"""Exponents from ranges, by hand and from a checkpoint's activations."""

from __future__ import annotations

import math

import pytest

from support.exports import GATED, RELU, Exports
from t5edge.bundle.ports import Limits
from t5edge.exporter.graph.rescale import FP16_MAX, Rescale, StackScale, exponent, measure_rescale
from t5edge.exporter.reference.texts import Batch
from t5edge.parity.workload import build_workload


@pytest.mark.parametrize(
    ("largest", "expected"), [(0.0, 0), (1.0, 0), (16376.0, 0), (16377.0, 1), (65504.0, 2), (1e6, 6)]
)
def test_the_smallest_exponent_that_leaves_a_headroom_of_four(largest: float, expected: int) -> None:
    assert exponent(largest) == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_range_that_is_not_finite_has_no_exponent(bad: float) -> None:
    with pytest.raises(ValueError, match="the largest activation is"):
        exponent(bad)


def test_factors_shrink_the_residual_and_undo_each_other_in_the_ffn() -> None:
    scale = StackScale(k=3, t=(2, 5), t_source="wi_1")
    assert scale.factor("layer.0.SelfAttention.o.weight", 0) == 1 / 8
    assert scale.factor("layer.1.DenseReluDense.wi_1.weight", 1) == 1 / 32
    assert scale.factor("layer.1.DenseReluDense.wo.weight", 1) == 32 / 8
    assert scale.factor("layer.1.DenseReluDense.wi_0.weight", 1) == 1
    assert scale.factor("layer.0.SelfAttention.q.weight", 0) == 1
    assert scale.epsilon_factor == 1 / 64
    assert Rescale().encoder.factor("layer.0.SelfAttention.o.weight", 0) == 1


def batches(exports: Exports, tiny: str) -> list[Batch]:
    limits = Limits(max_source_length=40, max_target_length=20)
    return [build_workload(exports.checkpoint(tiny), limits).texts]


@pytest.mark.parametrize(("tiny", "source"), [(GATED, "wi_1"), (RELU, "wi")])
def test_ranges_of_a_checkpoint_are_those_of_its_activations(exports: Exports, tiny: str, source: str) -> None:
    checkpoint = exports.checkpoint(tiny)
    layers: list[None] = []
    found = measure_rescale(checkpoint, batches(exports, tiny), on_layer=lambda: layers.append(None))
    a = checkpoint.architecture
    assert len(layers) == a.encoder_layers + a.decoder_layers
    for stack, depth in ((found.encoder, a.encoder_layers), (found.decoder, a.decoder_layers)):
        assert (stack.t_source, len(stack.t), len(stack.largest_ffn)) == (source, depth, depth)
        assert stack.largest_residual is not None
        assert 0 < stack.largest_residual < FP16_MAX / 4
        assert (stack.k, set(stack.t)) == (0, {0})


def test_less_headroom_than_asked_for_raises_the_exponents(exports: Exports) -> None:
    checkpoint, texts = exports.checkpoint(GATED), batches(exports, GATED)
    plain = measure_rescale(checkpoint, texts).encoder
    assert plain.largest_residual is not None
    headroom = 3.9 * FP16_MAX / plain.largest_residual
    assert measure_rescale(checkpoint, texts, headroom).encoder.k == 2

from __future__ import annotations

import numpy as np
import pytest

from t5edge.parity import measures
from t5edge.parity.measures import LogitErrors, compare_logits, log_softmax, mean_interval, pool, relative_error, wilson

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(0, 3, (7, 53)).astype(np.float32)


def test_relative_errors_are_ratios_to_the_reference() -> None:
    reference = np.array([3.0, 4.0])
    assert relative_error(np.array([3.0, 4.5]), reference) == pytest.approx(0.1)
    assert relative_error(reference, reference) == 0.0
    assert relative_error(reference, np.zeros(2)) == float("inf")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_infinitely_far(bad: float) -> None:
    value = np.array([bad, 4.0], dtype=np.float32)
    assert relative_error(value, np.array([3.0, 4.0])) == float("inf")


def test_shapes_must_agree_even_where_they_would_broadcast() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        relative_error(np.zeros((2, 1)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="positions, vocab"):
        compare_logits(np.zeros((1, 2, 3)), np.zeros((1, 2, 3)))


def test_log_softmax_and_kl_are_those_of_their_definitions() -> None:
    other = (LOGITS + RANDOM.normal(0, 0.3, LOGITS.shape)).astype(np.float32)
    powers = (np.exp(x.astype(np.float64)) for x in (LOGITS, other))
    expected, found = (power / power.sum(-1, keepdims=True) for power in powers)
    np.testing.assert_allclose(log_softmax(LOGITS), np.log(expected), rtol=1e-12)
    divergence = (expected * np.log(expected / found)).sum(-1)
    np.testing.assert_allclose(compare_logits(other, LOGITS).kl, divergence, rtol=1e-9)


def test_a_wrong_logit_scale_hides_from_arg_max_but_not_from_the_others() -> None:
    errors = compare_logits(LOGITS * 1.3, LOGITS)
    assert errors.top1(0.0) == (1.0, 0, 0)
    assert errors.relative == pytest.approx(0.3, rel=1e-5)
    assert errors.kl.mean() > 0.02
    assert errors.log_prob_relative > 0.1


def test_a_common_shift_changes_logits_but_no_probability() -> None:
    errors = compare_logits(LOGITS + 2.0, LOGITS)
    assert errors.relative > 0.1
    assert errors.kl.max() < 1e-12
    assert errors.log_prob_relative < 1e-6


def test_ties_are_left_out_by_the_margin_between_the_two_choices() -> None:
    reference = np.array([[1.0, 1.1, 0.0], [1.0, 3.0, 0.0], [5.0, 0.0, 0.0]])
    value = reference[:, [1, 0, 2]]  # every arg-max flips; the reference minded by 0.1, 2 and 5
    errors = compare_logits(value, reference)
    np.testing.assert_allclose(errors.margin, [0.1, 2.0, 5.0])
    assert errors.top1(0.0) == (0.0, 3, 0)
    assert errors.top1(0.2) == (0.0, 2, 1)
    assert errors.top1(2.5) == (0.0, 1, 2)
    assert errors.top1(9.0) == (1.0, 0, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_position_that_is_not_finite_is_counted_and_infinitely_wrong(bad: float) -> None:
    broken = LOGITS.copy()
    broken[2, 5] = bad
    for errors in (compare_logits(broken, LOGITS), compare_logits(LOGITS, broken)):
        assert errors.not_finite == 1
        assert errors.relative == errors.kl.max() == errors.worst_position == float("inf")
        assert errors.top1(1e9)[1] == 1


def test_chunks_and_pools_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    other = LOGITS + RANDOM.normal(0, 0.1, LOGITS.shape).astype(np.float32)
    whole = compare_logits(other, LOGITS)
    monkeypatch.setattr(measures, "CHUNK", 2 * LOGITS.shape[1])
    chunked = compare_logits(other, LOGITS)
    pooled = pool(LogitErrors, [compare_logits(other[:3], LOGITS[:3]), compare_logits(other[3:], LOGITS[3:])])
    for errors in (chunked, pooled):
        np.testing.assert_array_equal(errors.kl, whole.kl)
        assert errors.relative == whole.relative
    assert whole.rms_logit == pytest.approx(float(np.sqrt(np.mean(LOGITS**2))), rel=1e-6)


def test_the_worst_position_counts_against_an_average_one() -> None:
    value = LOGITS.copy()
    value[4] *= 1.01
    errors = compare_logits(value, LOGITS)
    size = np.sum(LOGITS.astype(np.float64) ** 2, axis=1)
    assert errors.worst_position == pytest.approx(0.01 * np.sqrt(size[4] / size.mean()), rel=1e-3)
    assert int(errors.error.argmax()) == 4


def test_wilsons_interval_is_that_of_the_book() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_interval_of_a_mean_is_the_normal_one_for_many_values() -> None:
    values = np.random.default_rng(3).exponential(2.0, 4000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    low, high = mean_interval(values)
    assert low < values.mean() < high
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)
    assert mean_interval(values) == (low, high)


def test_ties_do_not_count_as_agreement() -> None:
    reference = np.array([[1.0, 1.1, 0.0], [1.0, 3.0, 0.0], [5.0, 0.0, 0.0]])
    value = reference.copy()
    value[0] = reference[0, [1, 0, 2]]
    assert compare_logits(value, reference).agreeing == 2

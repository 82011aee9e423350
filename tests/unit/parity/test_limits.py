from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from t5edge.bundle.precision import Precision, QuantizedLimits, own_row, precision
from t5edge.parity.limits import (
    OwnErrors,
    error_limit,
    judge_briefly,
    judge_error,
    judge_logits,
    kl_limit,
    own_dtype,
    tie_margin,
)
from t5edge.parity.measures import LogitErrors, compare_logits

FP32, FP16, BF16 = precision("fp32"), precision("fp16"), precision("bf16")
QUALITY = QuantizedLimits(tie=0.5, hidden=0.2, logits=0.3, position=0.9, repeated=0.01, score_lost=0.1)
QUANTIZED = Precision("of-a-test", "float", weight_bits=8, max_kl=0.01, min_top1=0.99, quality=QUALITY)
OWN = OwnErrors(hidden=1e-3, cross=2e-3, logits=3e-3, position=9e-3, log_probs=1e-3, kl=2e-3)
LOGITS = np.random.default_rng(1).normal(0, 3, (40, 31))


def noisy(size: float) -> LogitErrors:
    noise = np.random.default_rng(2).normal(0, size, LOGITS.shape)
    return compare_logits(LOGITS + noise, LOGITS)


def verdicts(errors: LogitErrors, row: Precision, own: OwnErrors | None) -> dict[str, str]:
    return {result.measure.partition(",")[0]: result.verdict for result in judge_logits("3 logits", errors, row, own)}


def test_a_bound_stands_as_it_is_or_counts_in_units() -> None:
    assert error_limit(FP32, None, "logits") == 1e-5
    assert error_limit(FP16, OWN, "logits") == pytest.approx(6e-3)
    assert error_limit(FP16, OWN, "cross") == pytest.approx(4e-3)
    assert error_limit(QUANTIZED, OWN, "hidden") == pytest.approx(1e-3)


def test_pytorch_is_asked_for_its_error_where_the_row_needs_it() -> None:
    assert [own_dtype(row) for row in (FP32, FP16, BF16, QUANTIZED)] == [None, "float16", "bfloat16", "bfloat16"]


def test_kl_grows_with_the_square_of_the_allowed_error() -> None:
    assert kl_limit(FP32, None) == FP32.max_kl
    assert kl_limit(FP16, OWN) == pytest.approx(4 * OWN.kl)
    assert kl_limit(BF16, OWN) == BF16.max_kl
    assert kl_limit(QUANTIZED, OWN) == QUANTIZED.max_kl


def test_ties_are_as_wide_as_the_granted_error_explains() -> None:
    assert tie_margin(FP32, None, 3.0) == pytest.approx(4 * 1e-5 * 3)
    assert tie_margin(FP16, OWN, 3.0) == pytest.approx(4 * 2 * 3e-3 * 3)


def test_ties_of_a_quantized_row_are_a_fixed_number_of_nats() -> None:
    """A worse bundle gets no wider margin; and every result shows the rate without it."""
    for size in (0.05, 0.5, 1.0):
        errors = noisy(size)
        top1 = list(judge_logits("3 logits", errors, QUANTIZED, OWN))[-1]
        assert top1.details["margin"] == QUALITY.tie
        assert top1.value == errors.top1(QUALITY.tie)[0]
        assert top1.details["raw"] == errors.agreeing / errors.positions
        low, high = top1.details["raw_interval"]
        assert low <= top1.details["raw"] <= high
    assert tie_margin(QUANTIZED, None, 7.0) == QUALITY.tie
    assert tie_margin(replace(QUANTIZED, count_ties=True), None, 7.0) == 0.0


def test_the_mean_divergence_has_an_interval() -> None:
    kl = next(result for result in judge_logits("3 logits", noisy(0.3), QUANTIZED, OWN) if "KL" in result.measure)
    low, high = kl.details["interval"]
    assert kl.value is not None
    assert low < kl.value < high


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8", "int4-weight"])
def test_limits_are_the_programs_whatever_a_bundle_states(name: str) -> None:
    loose = replace(precision(name), max_kl=9.0, min_top1=0.0, max_error_ratio=99.0, max_relative_error=9.0)
    assert own_row(loose) == precision(name)
    assert own_row(loose).quality == precision(name).quality
    assert "quality" not in precision(name).to_dict()


def test_a_quantized_bundle_chooses_its_compute_dtype_and_to_count_ties() -> None:
    stated = replace(precision("int8").computing("float16"), count_ties=True)
    assert own_row(stated) == stated
    assert own_row(replace(precision("fp32"), compute="float16")) == precision("fp32")


def test_where_ties_count_every_change_of_the_best_token_is_wrong() -> None:
    errors = noisy(0.3)
    assert errors.top1(0.0)[0] < 1
    (lenient,), (strict,) = (
        [result for result in judge_logits("3 logits", errors, row, OWN) if result.measure.startswith("top-1")]
        for row in (QUANTIZED, replace(QUANTIZED, count_ties=True))
    )
    assert lenient.value == 1
    assert strict.value == errors.top1(0.0)[0]


def test_rows_that_bound_errors_are_judged_by_four_measures() -> None:
    exact = verdicts(noisy(1e-6), FP32, None)
    assert list(exact) == ["relative error", "log-probability error", "mean KL (nats)", "top-1 agreement"]
    assert set(exact.values()) == {"pass"}
    assert verdicts(noisy(1e-3), FP32, None)["relative error"] == "fail"
    assert set(verdicts(noisy(1e-3), FP16, OWN).values()) == {"pass"}
    assert verdicts(noisy(0.1), FP16, OWN)["relative error"] == "fail"


def test_quantized_rows_are_judged_by_distributions() -> None:
    assert verdicts(noisy(0.05), QUANTIZED, OWN) == {"mean KL (nats)": "pass", "top-1 agreement": "pass"}
    assert verdicts(noisy(1.0), QUANTIZED, OWN)["mean KL (nats)"] == "fail"


def test_top1_of_a_quantized_row_fails_where_its_error_does_not_explain_the_choice() -> None:
    value = LOGITS.copy()
    rows = np.arange(3)
    value[rows, LOGITS[rows].argmax(axis=1)] -= 20.0  # three tokens of forty, by far
    assert verdicts(compare_logits(value, LOGITS), QUANTIZED, OWN)["top-1 agreement"] == "fail"


def test_nan_comes_before_every_number() -> None:
    broken = LOGITS.copy()
    broken[0, 0] = np.nan
    errors = compare_logits(broken, LOGITS)
    (result,) = judge_logits("3 logits", errors, QUANTIZED, OWN)
    assert result.measure == "NaN or infinity in the logits"
    assert (result.verdict, result.details["broken"]) == ("fail", 1)
    assert judge_briefly("6 lengths", errors, FP16, OWN, "logits").measure == "NaN or infinity in the logits"
    found = judge_error("2 encoder", "encoder output", float("inf"), 1.0)
    assert (found.measure, found.verdict) == ("NaN or infinity in the encoder output", "fail")

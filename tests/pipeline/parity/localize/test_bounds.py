from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from t5edge.bundle.precision import PRECISIONS, precision
from t5edge.parity.limits import FLOAT32_ERROR, ceiling
from t5edge.parity.localize.bounds import as_array, error_bound, error_of, torch_dtype


def test_float32_has_the_rows_own_bound() -> None:
    assert error_bound(precision("fp32"), 0.3) == precision("fp32").max_relative_error


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_16_bits_follow_pytorch_within_reason(name: str) -> None:
    row = precision(name)
    assert error_bound(row, 3e-3) == 2 * 3e-3
    assert 0 < error_bound(row, 0.0) < 2e-2
    assert error_bound(row, math.inf) == error_bound(row, math.nan) == 2 * ceiling(row.compute)


@pytest.mark.parametrize("name", ["int8", "int8-weight", "int4-weight"])
def test_integers_follow_plain_rounding(name: str) -> None:
    assert error_bound(precision(name), 0.2) == 0.4
    assert error_bound(precision(name), 0.0) == FLOAT32_ERROR


def test_every_row_has_a_torch_dtype() -> None:
    assert {torch_dtype(row) for row in PRECISIONS} == {torch.float32, torch.float16, torch.bfloat16}


def test_errors_are_relative() -> None:
    exact = torch.tensor([[3.0, 4.0]], dtype=torch.bfloat16)
    assert error_of(as_array(exact) * 1.1, exact) == pytest.approx(0.1)


def test_padding_does_not_count() -> None:
    """An outlier there is beyond what calibration saw, and no answer depends on it."""
    exact = torch.ones(2, 3, 4)
    found = as_array(exact).copy()
    text = np.array([[True, True, False], [True, True, True]])
    found[0, 2] = 1e6
    assert error_of(found, exact, text) == 0
    found[1, 2] = 1.1
    assert error_of(found, exact, text) == pytest.approx(0.1 / 5**0.5)
    assert error_of(found, exact) > 1e5

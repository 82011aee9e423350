from __future__ import annotations

import numpy as np
import pytest
import torch

from support.saturation import saturating_sums
from t5edge.bundle.precision import precision
from t5edge.calibration.scheme import Scheme, quantize_rows, round_columns, round_up, row_scales, scheme_for

HALF = Scheme(8, scales="float16")


def weights(largest: float) -> torch.Tensor:
    """[out, in] with magnitudes up to ``largest``."""
    rows = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    return rows / rows.abs().amax(dim=1, keepdim=True) * largest


def test_rounding_up_gives_the_next_float16() -> None:
    values = np.array([1.0, 1.0001, 3e-8, 6e-6], np.float32)
    found = round_up(values, np.float16)
    assert (found >= values).all()
    assert np.array_equal(found, found.astype(np.float16).astype(np.float32))
    assert found[0] == 1.0
    assert found[2] == 2.0**-24, "never 0"


@pytest.mark.parametrize("largest", [300.0, 1.0, 1e-2, 1e-3])
def test_float16_scales_cost_next_to_nothing(largest: float) -> None:
    rows = weights(largest)
    exact, half = (float((round_columns(rows.T, scheme).T - rows).norm()) for scheme in (Scheme(8), HALF))
    assert half <= 1.05 * exact


@pytest.mark.parametrize("largest", [1e-4, 1e-5, 1e-6, 1e-7])
def test_scales_below_float16s_range_cost_no_more_than_float16_weights(largest: float) -> None:
    rows = weights(largest)
    scales = row_scales(rows, HALF)
    codes = quantize_rows(rows, scales, HALF)
    assert codes.abs().max() <= 127
    error = (codes * scales[:, None] - rows).abs().max()
    assert float(error) <= max(float((rows.half().float() - rows).abs().max()), float(scales.max()) / 2) * 1.01
    assert float(error) <= 2.0**-25 * 1.01 + largest / 254


def test_the_scheme_follows_the_compute_dtype() -> None:
    row = precision("int4-weight").computing("float16")
    assert scheme_for(row, 64, 48) == Scheme(4, 32, "float16")
    assert scheme_for(row, 50, 48) == HALF
    assert scheme_for(precision("int8"), 50, 48) == Scheme(8)


@pytest.mark.parametrize("size", [2, 7, 64, 768])
def test_weights_that_meet_integers_never_saturate(size: int) -> None:
    """Pairs of products fit into 16 bits whatever the inputs are, and no scale is coarser than that needs."""
    rows = torch.randn(24, size, generator=torch.Generator().manual_seed(size))
    rows[0, :2] = 9.0
    scheme = scheme_for(precision("int8"), size, 24, rounded=True)
    assert scheme == Scheme(8, pairs=True)
    values = quantize_rows(rows, row_scales(rows, scheme), scheme).numpy()
    values = np.pad(values, ((0, 0), (0, size % 2)))
    x = np.random.default_rng(0).choice([-128, 127], (8, values.shape[1]))
    x[:2] = [[127], [-128]]
    np.testing.assert_array_equal(saturating_sums(x, values.T), x @ values.T)
    sums = np.abs(values[:, ::2].astype(int) + values[:, 1::2]).max(axis=1)
    assert ((np.abs(values).max(axis=1) == 127) | (sums >= 126)).all()


def test_only_weights_that_meet_integers_are_limited() -> None:
    assert scheme_for(precision("int8"), 8, 8) == Scheme(8)
    assert scheme_for(precision("int8").computing("float16"), 8, 8, rounded=True) == HALF
    assert scheme_for(precision("int4-weight"), 64, 8, rounded=True) == Scheme(4, 32)

from __future__ import annotations

import pytest
import torch

from t5edge.calibration.observers import OBSERVERS, PERCENTILE, round_values


def heavy_tail() -> torch.Tensor:
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    values[0] = -40.0
    return values


@pytest.mark.parametrize("name", sorted(OBSERVERS))
def test_an_observer_stays_within_what_was_seen(name: str) -> None:
    values = heavy_tail()
    found = OBSERVERS[name](values, 40.0)
    assert 2.0 < found <= 40.0


def test_minmax_clips_nothing_and_the_others_clip_a_lone_outlier() -> None:
    values = heavy_tail()
    ranges = {name: observe(values, 40.0) for name, observe in OBSERVERS.items()}
    assert ranges["minmax"] == 40.0
    assert ranges["percentile"] < 10
    assert ranges["entropy"] < 20
    assert ranges["mse"] < 40


def test_the_percentile_is_that_of_the_magnitudes() -> None:
    values = heavy_tail()
    bin_width = 40 / 2048
    found = OBSERVERS["percentile"](values, 40.0)
    assert float((values.abs() <= found + bin_width).double().mean()) >= PERCENTILE / 100
    assert float((values.abs() <= found - bin_width).double().mean()) <= PERCENTILE / 100 + 1e-6


def test_mse_has_the_least_error_of_all() -> None:
    values = heavy_tail()
    errors = {
        name: float(((round_values(values, observe(values, 40.0) / 127) - values) ** 2).mean())
        for name, observe in OBSERVERS.items()
    }
    assert min(errors, key=lambda name: errors[name]) == "mse", errors


def test_rounding_is_that_of_quantize_linear() -> None:
    values = torch.tensor([0.0, 0.5, 1.5, -0.5, 127.4, 200.0, -200.0])
    assert round_values(values, 1.0).tolist() == [0.0, 0.0, 2.0, -0.0, 127.0, 127.0, -128.0]

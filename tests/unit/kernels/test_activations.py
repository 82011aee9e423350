"""Each activation at points worked out by hand: the tanh and the erf form of GELU are different functions."""

from __future__ import annotations

import numpy as np
import pytest

from t5edge.kernels.activations import ACTIVATIONS

VALUES = {
    "relu": (0.0, 0.0, 1.0),
    "gelu_tanh": (-0.158808, 0.0, 0.841192),
    "gelu_erf": (-0.158655, 0.0, 0.841345),
    "silu": (-0.268941, 0.0, 0.731059),
}


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_values_at_minus_one_zero_and_one(name: str) -> None:
    found = ACTIVATIONS[name](np.array([-1.0, 0.0, 1.0]))
    np.testing.assert_allclose(found, VALUES[name], atol=1e-6)

from __future__ import annotations

import math

import numpy as np
import pytest

from t5edge.kernels.activation_patterns import activation_pattern
from t5edge.kernels.activations import ACTIVATIONS
from t5edge.kernels.values import constant_value

GELU = {
    "half": 0.5,
    "exponent": 3.0,
    "cubic_factor": 0.044715,
    "inner_factor": math.sqrt(2 / math.pi),
    "one": 1.0,
}


def refusal(**changes: float) -> str | None:
    numbers = {**GELU, **changes}
    bound = {name: constant_value(np.array(number, np.float32), name) for name, number in numbers.items()}
    return activation_pattern("gelu_tanh").refuse(bound)


def test_float32_spellings_of_the_constants_pass() -> None:
    assert refusal() is None


@pytest.mark.parametrize("name", sorted(GELU))
def test_each_constant_is_checked(name: str) -> None:
    said = refusal(**{name: GELU[name] * 1.001})
    assert said is not None
    assert said.startswith(f"{name} is ")
    assert said.endswith("another activation function")


def test_every_activation_of_the_family_has_a_pattern() -> None:
    assert len(ACTIVATIONS) >= 3
    for name in ACTIVATIONS:
        assert callable(activation_pattern(name).match)

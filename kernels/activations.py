"""Activation functions of the family: numpy references, and the nodes that stand for them in a fused graph."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Activation = Callable[[np.ndarray], np.ndarray]


def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0), elementwise."""
    return np.maximum(x, 0)


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """GELU in its tanh form, as T5 v1.1 was trained with. Not the erf form: they differ by up to 5e-4."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_erf(x: np.ndarray) -> np.ndarray:
    """GELU by the error function."""
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def silu(x: np.ndarray) -> np.ndarray:
    """X * sigmoid(x), elementwise."""
    return x / (1 + np.exp(-x))


ACTIVATIONS: dict[str, Activation] = {
    "relu": relu,
    "gelu_tanh": gelu_tanh,
    "gelu_erf": gelu_erf,
    "silu": silu,
}

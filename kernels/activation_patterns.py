"""How each activation looks in a trace, when it is what it seems, and the nodes it becomes.

Constants are bound to names in the pattern and checked to 1e-5, so a near miss is refused with a reason instead of
silently not matching. tanh-GELU and erf-GELU are different functions and never stand in for each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from t5edge.kernels.fusion import near
from t5edge.kernels.values import scalar


@dataclass(frozen=True)
class ActivationPattern:
    """``match`` builds the traced pattern, ``emit`` the replacement; ``constants`` are the numbers it must carry."""

    match: Callable[[Any, Any], Any]
    emit: Callable[[Any, Any], Any]
    constants: Mapping[str, float] = field(default_factory=dict)

    def refuse(self, bound: Mapping[str, Any]) -> str | None:
        """The reason why the bound constants are not this activation's, or None."""
        for name, number in self.constants.items():
            if not near(bound[name], number):
                return f"{name} is {scalar(bound[name]):.6g}, expected {number:.6g}: another activation function"
        return None


def _match_gelu_tanh(op: Any, x: Any) -> Any:
    from onnxscript.rewriter.pattern import Var

    cubic = op.Add(x, op.Mul(op.Pow(x, Var("exponent")), Var("cubic_factor")))
    tanh = op.Tanh(op.Mul(cubic, Var("inner_factor")))
    return op.Mul(op.Mul(x, Var("half")), op.Add(tanh, Var("one")))


_GELU_TANH = ActivationPattern(
    match=_match_gelu_tanh,
    emit=lambda op, x: op.Gelu(x, approximate="tanh"),
    constants={
        "half": 0.5,
        "exponent": 3.0,
        "cubic_factor": 0.044715,
        "inner_factor": math.sqrt(2 / math.pi),
        "one": 1.0,
    },
)

_PATTERNS = {
    "relu": ActivationPattern(match=lambda op, x: op.Relu(x), emit=lambda op, x: op.Relu(x)),
    "silu": ActivationPattern(
        match=lambda op, x: op.Mul(x, op.Sigmoid(x)), emit=lambda op, x: op.Mul(x, op.Sigmoid(x))
    ),
    "gelu_tanh": _GELU_TANH,
    "gelu_erf": ActivationPattern(
        match=lambda op, x: op.Gelu(x, approximate="none"), emit=lambda op, x: op.Gelu(x, approximate="none")
    ),
}


def activation_pattern(name: str) -> ActivationPattern:
    """The pattern of one activation by our name (``t5edge.bundle.architecture.ACTIVATIONS``)."""
    return _PATTERNS[name]

"""Plain FFN: MatMul, activation, MatMul, recognised so that its scale is known to be exact (ReLU) and counted.

x : [batch, seq, d_model]   wi : [d_model, d_ff]   wo : [d_ff, d_model]   out : [batch, seq, d_model]
before : act(x @ wi) @ wo, other activations than ReLU spelled out in several nodes
after  : the same MatMuls around one activation node; the first one's weight is marked by its expression
"""

from __future__ import annotations

from typing import Any

from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleClassBase

from t5edge.bundle.architecture import Architecture
from t5edge.kernels.activation_patterns import ActivationPattern, activation_pattern
from t5edge.kernels.block import Block, BlockKind
from t5edge.kernels.fusion import Fusion, FusionResult, apply_rules
from t5edge.kernels.weights import PlannedTensor, StackedWeight, expression_of

RECOGNISED = "ffn."
"""Prefix of a recognised wi: the replacement looks like the pattern, and must not match again."""


class FfnRule(RewriteRuleClassBase):
    def __init__(self, activation: ActivationPattern) -> None:
        super().__init__("relu_ffn")
        self._activation = activation

    def pattern(self, op: Any, x: Any, wi: Any, wo: Any) -> Any:
        return op.MatMul(self._activation.match(op, op.MatMul(x, wi)), wo)

    def check(self, context: Any, wi: Any, wo: Any, **constants: Any) -> MatchResult:
        result = MatchResult()
        for value, role in ((wi, "wi"), (wo, "wo")):
            expression = expression_of(value)
            if not isinstance(expression, StackedWeight) or not expression.transposed:
                return result.fail(f"{role} is not a weight of the checkpoint in MatMul's layout")
        if wi.name.startswith(RECOGNISED):
            return result.fail("recognised already")
        reason = self._activation.refuse(constants)
        return result.fail(reason) if reason else result

    def rewrite(self, op: Any, x: Any, wi: Any, wo: Any, **_: Any) -> Any:
        name = f"{RECOGNISED}{wi.name}"
        weight = op.initializer(PlannedTensor(expression_of(wi), wi.dtype, name), name)  # type: ignore[arg-type]
        return op.MatMul(self._activation.emit(op, op.MatMul(x, weight)), wo)


def rule(activation: str) -> RewriteRule:
    """The rewrite for one activation (``relu`` in the published family)."""
    return FfnRule.rule(activation_pattern(activation))


def _apply(block: Block, architecture: Architecture) -> FusionResult:
    return apply_rules(block, rule(architecture.activation))


def _expect(architecture: Architecture, kind: BlockKind) -> int:
    return int(not architecture.gated and kind != "cross_kv")


FUSION = Fusion("relu_ffn", _apply, _expect, "after the projections, like the gated form")

"""Gated FFN: two MatMuls and an activation -> one packed MatMul, the activation, Mul.

x : [batch, seq, d_model]   wi_0, wi_1 : [d_model, d_ff]   out : [batch, seq, d_model]
before : (act(x @ wi_0) * (x @ wi_1)) @ wo, tanh-GELU spelled out in eight nodes
after  : gate, up = split(x @ [wi_0 | wi_1]);  (act(gate) * up) @ wo
"""

from __future__ import annotations

from typing import Any

from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleClassBase

from t5edge.bundle.architecture import Architecture
from t5edge.kernels.activation_patterns import ActivationPattern, activation_pattern
from t5edge.kernels.block import Block, BlockKind
from t5edge.kernels.fusion import Fusion, FusionResult, apply_rules
from t5edge.kernels.weights import PlannedTensor, StackedWeight, expression_of


class GatedFfnRule(RewriteRuleClassBase):
    def __init__(self, activation: ActivationPattern) -> None:
        super().__init__("gated_ffn")
        self._activation = activation

    def pattern(self, op: Any, x: Any, wi_0: Any, wi_1: Any, wo: Any) -> Any:
        gate = self._activation.match(op, op.MatMul(x, wi_0))
        return op.MatMul(op.Mul(gate, op.MatMul(x, wi_1)), wo)

    def check(self, context: Any, wi_0: Any, wi_1: Any, wo: Any, **constants: Any) -> MatchResult:
        result = MatchResult()
        expressions = [expression_of(value) for value in (wi_0, wi_1, wo)]
        if not all(isinstance(expression, StackedWeight) and expression.transposed for expression in expressions):
            return result.fail("wi_0, wi_1 and wo must be weights of the checkpoint in MatMul's layout")
        if expressions[0].shape != expressions[1].shape:  # type: ignore[union-attr]
            return result.fail("gate and up differ in width")
        reason = self._activation.refuse(constants)
        return result.fail(reason) if reason else result

    def rewrite(self, op: Any, x: Any, wi_0: Any, wi_1: Any, wo: Any, **_: Any) -> Any:
        expression = expression_of(wi_0).join(expression_of(wi_1))  # type: ignore[union-attr]
        weight = op.initializer(
            PlannedTensor(expression, wi_0.dtype, f"packed.{expression.key}"), f"packed.{expression.key}"
        )
        gate, up = op.Split(op.MatMul(x, weight), axis=-1, num_outputs=2, _outputs=2)
        return op.MatMul(op.Mul(self._activation.emit(op, gate), up), wo)


def rule(activation: str) -> RewriteRule:
    """The rewrite for one activation (``gelu_tanh``, ``silu``, ...)."""
    return GatedFfnRule.rule(activation_pattern(activation))


def _apply(block: Block, architecture: Architecture) -> FusionResult:
    return apply_rules(block, rule(architecture.activation))


def _expect(architecture: Architecture, kind: BlockKind) -> int:
    return int(architecture.gated and kind != "cross_kv")


FUSION = Fusion("gated_ffn", _apply, _expect, "after the projections: all other MatMuls of weights are then packed")

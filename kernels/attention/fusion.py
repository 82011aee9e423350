"""Attention: MatMul, Add, Softmax, MatMul and a reshape computed at run time -> Attention and a constant reshape.

q : [batch, heads, target, d_kv]   k, v : [batch, heads, total, d_kv]   bias : [batch | 1, heads | 1, target | 1, total]
before : reshape(transpose(softmax(q @ k^T + bias) @ v), computed shape)
after  : reshape(transpose(Attention(q, k, v, bias, scale=1)), [0, 0, heads * d_kv])
"""

from __future__ import annotations

from typing import Any

from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleClassBase

from t5edge.bundle.architecture import Architecture
from t5edge.kernels.block import Block, BlockKind
from t5edge.kernels.fusion import Fusion, FusionResult, apply_rules


class AttentionRule(RewriteRuleClassBase):
    def __init__(self, inner_dim: int) -> None:
        super().__init__("attention")
        self._inner_dim = inner_dim

    def pattern(self, op: Any, q: Any, k: Any, v: Any, bias: Any, merged: Any) -> Any:
        scores = op.Add(op.MatMul(q, op.Transpose(k, perm=[0, 1, 3, 2])), bias)
        weights = op.Softmax(scores, _outputs=["weights"])
        context = op.Transpose(op.MatMul(weights, v), perm=[0, 2, 1, 3])
        return op.Reshape(context, merged, _allow_other_attributes=True)

    def check(self, context: Any, weights: Any, bias: Any, **_: Any) -> MatchResult:
        result = MatchResult()
        axis = weights.producer().attributes.get("axis")
        rank = None if bias.shape is None else len(bias.shape)
        if axis is not None and axis.as_int() not in (-1, 3):
            return result.fail(f"the softmax runs over axis {axis.as_int()}, not over the keys")
        if rank != 4:
            return result.fail(f"the additive mask has rank {rank}, not 4")
        return result

    def rewrite(self, op: Any, q: Any, k: Any, v: Any, bias: Any, **_: Any) -> Any:
        context = op.Transpose(op.Attention(q, k, v, bias, scale=1.0), perm=[0, 2, 1, 3])
        return op.Reshape(context, op.Constant(value_ints=[0, 0, self._inner_dim]))


def rule(inner_dim: int) -> RewriteRule:
    """The rewrite for one model; ``inner_dim`` is heads * d_kv (T5: not d_model)."""
    return AttentionRule.rule(inner_dim)


def _apply(block: Block, architecture: Architecture) -> FusionResult:
    return apply_rules(block, rule(architecture.inner_dim))


def _expect(_: Architecture, kind: BlockKind) -> int:
    return {"encoder": 1, "decoder": 2, "cross_kv": 0}[kind]


FUSION = Fusion("attention", _apply, _expect, "before the projections: it frees q, k and v of the transpose of k")

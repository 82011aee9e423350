"""RMS norm: six elementwise nodes and a mean -> one RMSNormalization.

before : w * (x * (1 / sqrt(mean(x^2) + eps)))
after  : RMSNormalization(x, w, epsilon=eps), statistics in float32 whatever the type of x

onnxscript ships a rule for the same nodes. It does not match here, because ``torch.onnx`` passes the axes through a
Reshape of a constant. Its numbers are part of its pattern, so a near miss would be refused without a reason.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRuleClassBase

from t5edge.bundle.architecture import Architecture
from t5edge.kernels.block import Block, BlockKind
from t5edge.kernels.fusion import Fusion, FusionResult, apply_rules, near
from t5edge.kernels.values import scalar
from t5edge.kernels.weights import expression_of


class RmsNormRule(RewriteRuleClassBase):
    def pattern(self, op: Any, x: Any, weight: Any, exponent: Any, axes: Any, epsilon: Any) -> Any:
        mean = op.ReduceMean(op.Pow(x, exponent), axes, keepdims=1, _allow_other_attributes=True)
        inverse = op.Reciprocal(op.Sqrt(op.Add(mean, epsilon)))
        return op.Mul(weight, op.Mul(x, inverse))

    def check(self, context: Any, x: Any, weight: Any, exponent: Any, axes: Any, epsilon: Any) -> MatchResult:
        result = MatchResult()
        if not near(exponent, 2.0):
            return result.fail(f"the exponent is {scalar(exponent)}, not 2: this is not a root mean square")
        found = constant_axes(axes)
        if found != [-1]:
            return result.fail(f"the mean runs over axes {found or 'known only at run time'}, not over the last alone")
        if scalar(epsilon) is None:
            return result.fail("epsilon is not a constant")
        expression = expression_of(weight)
        if expression is None or len(expression.shape) != 1:
            return result.fail("the scale is not a vector of weights over the last axis")
        return result

    def rewrite(self, op: Any, x: Any, weight: Any, epsilon: Any, **_: Any) -> Any:
        return op.RMSNormalization(x, weight, axis=-1, epsilon=scalar(epsilon), stash_type=1)


def constant_axes(axes: ir.Value) -> list[int] | None:
    """The numbers of a constant, also behind a Reshape; None where only a run knows them."""
    producer = axes.producer()
    given = producer.inputs[0] if producer is not None and producer.op_type == "Reshape" else axes
    tensor = None if given is None else ir.convenience.get_const_tensor(given)
    return None if tensor is None else [int(axis) for axis in tensor.numpy().reshape(-1)]


def _apply(block: Block, _: Architecture) -> FusionResult:
    return apply_rules(block, RmsNormRule.rule())


def _expect(_: Architecture, kind: BlockKind) -> int:
    return {"encoder": 2, "decoder": 3, "cross_kv": 0}[kind]


FUSION = Fusion("rms_norm", _apply, _expect, "first: the projections after it are recognised by their common input")

"""What a fusion is: a named rewrite of a traced block that must match a known number of times.

T5 is regular, so the right count follows from the architecture; any other count fails the export with the reasons the
matcher gave. Onnxscript's rewriter does the matching (pattern, legality check, replacement in one class).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from onnxscript.rewriter import MatchingTracer, RewriteRule, RewriteRuleSet

from t5edge.bundle.architecture import Architecture
from t5edge.kernels.block import Block, BlockKind


class FusionError(Exception):
    """A fusion matched the wrong number of times: transformers' block changed, or the architecture is not T5's."""


@dataclass
class FusionResult:
    """What one fusion did to one block."""

    matched: int = 0
    refusals: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Fusion:
    """One row of the fusion table.

    ``expect(architecture, kind)`` is how often the fusion must match; ``why_here`` says why it stands at this place.
    """

    name: str
    apply: Callable[[Block, Architecture], FusionResult]
    expect: Callable[[Architecture, BlockKind], int]
    why_here: str

    def run(self, block: Block, architecture: Architecture) -> FusionResult:
        """Apply to one block and check the count.

        Raises:
            FusionError: the count is not the expected one; the message carries the matcher's reasons.
        """
        expected = self.expect(architecture, block.kind)
        result = self.apply(block, architecture) if expected else FusionResult()
        common_passes.RemoveUnusedNodesPass()(block.model)
        if result.matched != expected:
            reasons = "; ".join(result.refusals) or "nothing of that shape was found"
            raise FusionError(
                f"fusion {self.name} matched {result.matched} times in the {block.kind} block, expected {expected}: "
                f"{reasons}"
            )
        return result


def apply_rules(block: Block, *rules: RewriteRule) -> FusionResult:
    """Run rewrite rules over a block; collect how often they matched and why near misses were refused."""
    rule_set = RewriteRuleSet(list(rules))
    matched = rule_set.apply_to_model(block.model)
    tracer = MatchingTracer()
    rule_set.apply_to_model(block.model, tracer=tracer)  # with a tracer it only looks: what is left, and why
    return FusionResult(matched, _refusals(tracer))


def _refusals(tracer: MatchingTracer) -> list[str]:
    """Reasons of the legality checks that refused a structural match, one line each."""
    reasons: list[str] = []
    for matches in tracer.best_matches_map.values():
        for match in matches:
            result: Any = match.match_result
            if not result and result.reason and match.status.name == "CONDITION_FAILED":
                reasons.append(str(result.reason))
    return reasons


def near(value: ir.Value | None, number: float, relative: float = 1e-5) -> bool:
    """Whether a scalar constant equals ``number`` within ``relative`` (float32 spelling of a decimal)."""
    from t5edge.kernels.values import scalar

    found = scalar(value)
    return found is not None and abs(found - number) <= relative * abs(number)

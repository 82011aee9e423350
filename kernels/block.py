"""One traced block of a T5 stack, which the fusions rewrite."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

BlockKind = Literal["encoder", "decoder", "cross_kv"]

OPSET = 23


@dataclass(frozen=True)
class Block:
    """One traced block: a graph whose initializers are expressions with names relative to the layer.

    ``traced`` is the graph as it was before any fusion: what the fused one is compared with.
    """

    kind: BlockKind
    model: ir.Model
    traced: ir.Model | None = None

    @property
    def graph(self) -> ir.Graph:
        return self.model.graph

    def operator_counts(self) -> dict[str, int]:
        """How often each operator occurs."""
        return dict(sorted(Counter(node.op_type for node in self.graph).items()))

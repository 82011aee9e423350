"""Cross keys and values: two MatMuls of the encoder's output -> one MatMul and a Split.

hidden : [batch, source, d_model]   out : key, value [batch, heads, source, d_kv]
before : transpose(reshape(hidden @ w, shape computed at run time)), twice
after  : split(hidden @ [w_k | w_v]), constant reshapes
"""

from __future__ import annotations

from t5edge.bundle.architecture import Architecture
from t5edge.kernels.block import Block, BlockKind
from t5edge.kernels.fusion import Fusion, FusionResult
from t5edge.kernels.projection import pack_projections


def _apply(block: Block, architecture: Architecture) -> FusionResult:
    return pack_projections(block, architecture, 2)


def _expect(_: Architecture, kind: BlockKind) -> int:
    return {"encoder": 0, "decoder": 0, "cross_kv": 1}[kind]


FUSION = Fusion("cross_kv", _apply, _expect, "anywhere: its block holds nothing else")

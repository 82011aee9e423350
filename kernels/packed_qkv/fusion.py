"""Packed QKV: three MatMuls of one input -> one MatMul and a Split. The single query of cross-attention alike, n = 1.

x : [batch, seq, d_model]   out : q, k, v [batch, heads, seq, d_kv]
before : transpose(reshape(x @ w, shape computed at run time)), three times
after  : split(x @ [w_q | w_k | w_v]), constant reshapes
"""

from __future__ import annotations

from t5edge.bundle.architecture import Architecture
from t5edge.kernels.block import Block, BlockKind
from t5edge.kernels.fusion import Fusion, FusionResult
from t5edge.kernels.projection import pack_projections


def _pack_self(block: Block, architecture: Architecture) -> FusionResult:
    return pack_projections(block, architecture, 3)


def _pack_query(block: Block, architecture: Architecture) -> FusionResult:
    return pack_projections(block, architecture, 1)


def _expect_self(_: Architecture, kind: BlockKind) -> int:
    return {"encoder": 1, "decoder": 1, "cross_kv": 0}[kind]


def _expect_query(_: Architecture, kind: BlockKind) -> int:
    return {"encoder": 0, "decoder": 1, "cross_kv": 0}[kind]


FUSION = Fusion("packed_qkv", _pack_self, _expect_self, "after attention: q, k and v then end in a plain transpose")
QUERY_FUSION = Fusion("cross_query", _pack_query, _expect_query, "after packed_qkv: what is left projects alone")

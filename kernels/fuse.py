"""The fusions in the order in which they run, and the operators each block must be left with."""

from __future__ import annotations

from t5edge.bundle.architecture import Architecture
from t5edge.kernels.attention.fusion import FUSION as ATTENTION
from t5edge.kernels.block import Block, BlockKind
from t5edge.kernels.cross_kv.fusion import FUSION as CROSS_KV
from t5edge.kernels.fusion import Fusion, FusionError
from t5edge.kernels.gated_ffn.fusion import FUSION as GATED_FFN
from t5edge.kernels.packed_qkv.fusion import FUSION as PACKED_QKV
from t5edge.kernels.packed_qkv.fusion import QUERY_FUSION
from t5edge.kernels.relu_ffn.fusion import FUSION as RELU_FFN
from t5edge.kernels.rms_norm.fusion import FUSION as RMS_NORM

FUSIONS: tuple[Fusion, ...] = (RMS_NORM, ATTENTION, PACKED_QKV, QUERY_FUSION, CROSS_KV, RELU_FFN, GATED_FFN)


def fuse(block: Block, architecture: Architecture) -> dict[str, int]:
    """Run every fusion on one traced block, in order; returns how often each matched.

    Raises:
        FusionError: a fusion matched the wrong number of times, or an operator is left that no fusion accounts for.
    """
    counts = {fusion.name: fusion.run(block, architecture).matched for fusion in FUSIONS}
    expected = expected_operator_counts(architecture, block.kind)
    if block.operator_counts() != expected:
        raise FusionError(
            f"the fused {block.kind} block holds {block.operator_counts()}, expected {expected}: "
            "transformers' block changed"
        )
    return {name: count for name, count in counts.items() if count}


def expected_operator_counts(architecture: Architecture, kind: BlockKind) -> dict[str, int]:
    """Operators of a fully fused block. Anything else is a node that no fusion accounts for."""
    if kind == "cross_kv":
        return dict(sorted({"MatMul": 1, "Split": 1, "Reshape": 1, "Transpose": 1}.items()))
    decoder = kind == "decoder"
    attentions = 2 if decoder else 1
    projections = 2 if decoder else 1
    counts = {
        "RMSNormalization": attentions + 1,
        "Attention": attentions,
        "MatMul": 2 * attentions + 2,
        "Add": attentions + 1,
        "Split": 1 + architecture.gated,
        "Reshape": projections + attentions,
        "Transpose": projections + attentions,
        "Constant": attentions,
        "Concat": 2 if decoder else 0,
    }
    activation = {"relu": "Relu", "gelu_tanh": "Gelu", "gelu_erf": "Gelu", "silu": "Sigmoid"}[architecture.activation]
    counts[activation] = 1
    counts["Mul"] = int(architecture.gated) + int(architecture.activation == "silu")
    return {name: count for name, count in sorted(counts.items()) if count}

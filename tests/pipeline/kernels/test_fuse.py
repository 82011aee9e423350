"""Every fusion on transformers' real blocks, with checked counts, for every FFN kind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.tiny_models import find_tiny_model
from t5edge.exporter.graph import trace
from t5edge.kernels.block import BlockKind
from t5edge.kernels.fuse import FUSIONS, expected_operator_counts, fuse
from t5edge.kernels.fusion import FusionError

COUNTS = {
    "encoder": {"rms_norm": 2, "attention": 1, "packed_qkv": 1},
    "decoder": {"rms_norm": 3, "attention": 2, "packed_qkv": 1, "cross_query": 1},
}


@pytest.mark.parametrize("name", ["t5-tiny", "v1.1-tiny", "ul2-tiny"])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_traced_blocks_fuse_completely(kind: BlockKind, name: str) -> None:
    """Plain ReLU, gated tanh-GELU and gated SiLU."""
    architecture = find_tiny_model(name).architecture
    block = trace.trace_block(architecture, kind)
    ffn = {"gated_ffn" if architecture.gated else "relu_ffn": 1}
    assert fuse(block, architecture) == {**COUNTS[kind], **ffn}
    assert block.operator_counts() == expected_operator_counts(architecture, kind)


def test_a_block_of_another_architecture_fails_the_export() -> None:
    architecture = find_tiny_model("ul2-tiny").architecture
    block = trace.trace_block(architecture, "encoder")
    with pytest.raises(FusionError, match="relu_ffn matched 0 times"):
        fuse(block, replace(architecture, activation="relu", gated=False))


def test_cross_keys_and_values_are_one_projection() -> None:
    architecture = find_tiny_model("t5-tiny").architecture
    block = trace.trace_block(architecture, "cross_kv")
    assert fuse(block, architecture) == {"cross_kv": 1}


def test_every_fusion_says_why_it_stands_where_it_stands() -> None:
    assert len(FUSIONS) >= 7
    assert [fusion.name for fusion in FUSIONS if len(fusion.why_here.split()) < 4] == []

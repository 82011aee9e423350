from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
import pytest

from support.exports import GATED, RELU, Exports
from t5edge.kernels.block import Block, BlockKind
from t5edge.kernels.fuse import FUSIONS
from t5edge.parity.operators import block_error, operator_errors, position_bias_error

LIMIT = 1e-5


@pytest.mark.parametrize("tiny", [GATED, RELU])
def test_every_fused_operator_agrees_with_its_contract(exports: Exports, tiny: str) -> None:
    checkpoint = exports.checkpoint(tiny)
    architecture = checkpoint.architecture
    errors = operator_errors(exports.blocks(checkpoint), architecture)
    kinds: tuple[BlockKind, ...] = ("encoder", "decoder", "cross_kv")
    fused = {fusion.name for fusion in FUSIONS if any(fusion.expect(architecture, kind) for kind in kinds)}
    assert set(errors) == fused | {"position_bias"}
    assert max(errors.values()) < LIMIT


@pytest.mark.parametrize("tiny", [GATED, RELU])
def test_every_fused_block_agrees_with_its_trace(exports: Exports, tiny: str) -> None:
    checkpoint = exports.checkpoint(tiny)
    for block in exports.blocks(checkpoint).values():
        assert block.traced is not None
        assert block.operator_counts() != Block(block.kind, block.traced).operator_counts(), (
            "the trace was fused as well"
        )
        assert block_error(block, checkpoint.architecture) < LIMIT


def broken(block: Block, op_type: str, attribute: ir.Attr) -> Block:
    """A copy whose first node of that type has another attribute."""
    model = block.model.clone()
    node = next(node for node in model.graph if node.op_type == op_type)
    node.attributes.add(attribute)
    return replace(block, model=model)


@pytest.mark.parametrize(
    ("op_type", "attribute", "operator"),
    [
        ("Attention", ir.AttrFloat32("scale", 0.125), "attention"),
        ("Gelu", ir.AttrString("approximate", "none"), "gated_ffn"),
        ("Transpose", ir.AttrInt64s("perm", [0, 2, 3, 1]), None),
    ],
)
def test_a_wrong_fusion_is_found(exports: Exports, op_type: str, attribute: ir.Attr, operator: str | None) -> None:
    checkpoint = exports.checkpoint(GATED)
    kind: BlockKind = "encoder"
    block = broken(exports.blocks(checkpoint)[kind], op_type, attribute)
    if operator is None:
        with pytest.raises(Exception, match=r"[Ss]hape|dimension|Reshape|Attention"):
            block_error(block, checkpoint.architecture)
        return
    assert operator_errors({kind: block}, checkpoint.architecture)[operator] > LIMIT
    assert block_error(block, checkpoint.architecture) > LIMIT


def test_position_bias_is_exact(exports: Exports) -> None:
    architecture = exports.checkpoint(GATED).architecture
    assert position_bias_error(architecture) == 0.0
    assert position_bias_error(replace(architecture, max_distance=20)) == 0.0

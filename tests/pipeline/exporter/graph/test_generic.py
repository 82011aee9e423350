"""A block traced with sizes of its own is the one traced with generic sizes, sizes exchanged."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
import pytest
from onnx_ir.passes.common import IdentityEliminationPass

from support.tiny_models import find_tiny_model
from t5edge.bundle.architecture import Architecture
from t5edge.exporter.graph import trace
from t5edge.exporter.graph.generic import AXES, SIZES, generic, open_axes, resize
from t5edge.kernels.block import BlockKind
from t5edge.kernels.fusion import FusionError

ODD = replace(
    find_tiny_model("v1.1-tiny").architecture, activation="gelu_erf", d_model=33, num_heads=1, d_kv=7, d_ff=37
)
FACTS: dict[str, Architecture] = {
    **{name: find_tiny_model(name).architecture for name in ("t5-tiny", "t5-11b-tiny", "v1.1-tiny", "ul2-tiny")},
    "one odd head": ODD,
}


def described(model: ir.Model) -> list[object]:
    """Ports, weights and nodes with their shapes and attributes; values by number, since torch's names count sizes.

    Without identities: of a single head some copies are none.
    """
    IdentityEliminationPass()(model)
    numbers: dict[ir.Value | None, int] = {None: -1}
    found: list[object] = []
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        numbers[value] = len(numbers)
        found.append((value.name, value.dtype, str(value.shape)))
    for node in model.graph:
        attributes = sorted((name, said(attribute)) for name, attribute in node.attributes.items())
        found.append((node.op_type, [numbers[value] for value in node.inputs], attributes))
        for value in node.outputs:
            numbers[value] = len(numbers)
            found.append((value.dtype, str(value.shape)))
    return [*found, [numbers[value] for value in model.graph.outputs]]


def said(attribute: ir.Attr) -> str:
    return str(attribute.as_tensor().numpy() if attribute.type == ir.AttributeType.TENSOR else attribute.value)


def same(name: str, kind: BlockKind) -> None:
    facts = FACTS[name]
    model = trace._traced(generic(facts), kind)
    resize(model, facts)
    assert described(model) == described(trace._traced(facts, kind))


def test_sizes_are_told_apart() -> None:
    together = SIZES["num_heads"] * SIZES["d_kv"], AXES["past"] + AXES["target"]
    numbers = [*SIZES.values(), *AXES.values(), *together]
    assert len(set(numbers)) == len(numbers)
    assert min(numbers) > 2 * 127  # beyond every other number of a block


def test_a_generic_trace_is_the_traced_block() -> None:
    same("one odd head", "cross_kv")


def test_a_block_that_computes_with_its_lengths_is_refused() -> None:
    length = ir.node("Constant", [], {"value_ints": [AXES["source"]]})
    hidden = ir.val("hidden", ir.DataType.FLOAT, [AXES["batch"], AXES["source"], 8])
    longer = ir.node("Expand", [hidden, length.outputs[0]])
    graph = ir.Graph([hidden], longer.outputs, nodes=[length, longer], opset_imports={"": 23}, name="block")
    with pytest.raises(FusionError, match="a traced block computes with source: transformers' block changed"):
        open_axes(ir.Model(graph, ir_version=10))


@pytest.mark.slow
@pytest.mark.parametrize("kind", trace.BLOCK_KINDS)
@pytest.mark.parametrize("name", FACTS)
def test_generic_traces_are_the_traced_blocks(name: str, kind: BlockKind) -> None:
    same(name, kind)

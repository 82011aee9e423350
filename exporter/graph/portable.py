"""Graphs for older runtimes: everything newer than opset 17 written out, nothing else changed.

    before : Attention, RMSNormalization (23), Gelu (20), float16 scales (19), Split by number, axes as inputs (18)
    after  : the primitives of ``kernels.primitives``, opset 17, IR version 8

A pass over the finished graphs, rescaled and quantized: both forms have the same weights and the same names at the same
places. What is left must be in opset 17 by ONNX' own schemas, or the export fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from t5edge.bundle.manifest import PORTABLE_OPSET
from t5edge.exporter.graph.assemble import Graphs
from t5edge.kernels.fusion import FusionError
from t5edge.kernels.primitives import expand

OPSET, IR_VERSION = PORTABLE_OPSET, 8


def make_portable(graphs: Graphs) -> None:
    """Rewrite every graph in place.

    Raises:
        FusionError: an operator is left that opset 17 does not have.
    """
    for name, model in graphs.items():
        rewrite(model)
        left = too_new(model)
        if left:
            raise FusionError(f"{name}: {', '.join(left)} not in opset {OPSET}: kernels.primitives does not know them")


def rewrite(model: ir.Model) -> None:
    """One graph, in place."""
    graph, added = model.graph, dict[str, ir.Value]()
    for node in list(graph):
        try:
            found = expand(node)
        except ValueError as error:
            raise FusionError(str(error)) from error
        if found is not None:
            _replace(graph, node, *found, added)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        graph.initializers.pop(name)
    graph.initializers.update(added)
    graph.opset_imports[""] = OPSET
    model.ir_version = IR_VERSION


def is_portable(model: ir.Model) -> bool:
    return model.graph.opset_imports[""] == OPSET


def too_new(model: ir.Model) -> list[str]:
    """What opset 17 does not have, by its schemas: operators, their attributes, and inputs beyond those they take."""
    import onnx

    found = set()
    for node in model.graph:
        try:
            schema = onnx.defs.get_schema(node.op_type, OPSET, node.domain)
        except onnx.defs.SchemaError:
            found.add(node.op_type)
            continue
        unknown = sorted(node.attributes.keys() - schema.attributes.keys())
        if unknown or len(node.inputs) > schema.max_input:
            found.add(f"{node.op_type} with {', '.join(unknown) or f'{len(node.inputs)} inputs'}")
    return sorted(found)


def check_file(path: Path) -> None:
    """A written graph by ONNX' checker, types and shapes included; its weights lie beside it.

    Raises:
        FusionError: it is not valid.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise FusionError(f"{path.name} is not valid in opset {OPSET}: {error}") from error


def _replace(
    graph: ir.Graph, old: ir.Node, nodes: list[ir.Node], outputs: Sequence[ir.Value], added: dict[str, ir.Value]
) -> None:
    """Put ``nodes`` in the place of ``old``, named after it. Their new constants go to ``added``, each name once.

    There scales in float32 have the name of those in float16, whose place they take when nothing reads these any more.
    """
    counts = Counter(node.op_type for node in nodes)
    for place, node in enumerate(nodes):
        number = f"_{place}" if counts[node.op_type] > 1 else ""
        same = node.op_type == old.op_type and node is nodes[-1]
        node.name = old.name if same else f"{old.name}/{node.op_type}{number}"
        for index, value in enumerate(node.outputs):
            value.name = f"{node.name}:{index}"
        for index, given in enumerate(node.inputs):
            if given is not None and given.const_value is not None and given.graph is not graph:
                node.replace_input_with(index, added.setdefault(str(given.name), given))
    ir.convenience.replace_nodes_and_values(graph, old, [old], nodes, list(old.outputs), outputs)

"""Ids outside the vocabulary in the graphs, operator by operator, against numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from support.exports import GATED, Exports
from t5edge.bundle.architecture import VIRTUAL_TOKENS
from t5edge.exporter.graph.assemble import Graphs, assemble
from t5edge.exporter.graph.in_place import add_in_place
from t5edge.exporter.graph.rescale import Rescale
from t5edge.exporter.graph.weight_expressions import PlainTable
from t5edge.kernels.weights import expression_of


@pytest.fixture(scope="module")
def graphs(exports: Exports) -> Graphs:
    checkpoint = exports.checkpoint(GATED)
    a = replace(checkpoint.architecture, virtual_tokens=3, prefix_lengths=(2, 5))
    facts = (a, exports.blocks(checkpoint), "float", Rescale())
    return add_in_place(assemble(*facts), *facts)


def test_every_table_is_stored_once_and_is_no_matrix(graphs: Graphs, exports: Exports) -> None:
    layers = exports.checkpoint(GATED).architecture.decoder_layers
    expressions = [expression_of(value) for value in graphs.encoder.graph.initializers.values()]
    tables = {entry.key: entry.shape for entry in expressions if isinstance(entry, PlainTable)}
    assert tables.pop(VIRTUAL_TOKENS) == (3, 104)
    assert tables == {f"prefix.{layer}.{half}": (3, 5 * 128) for layer in range(layers) for half in ("key", "value")}
    assert graphs.decoder is not None
    for _, model in graphs.items()[1:]:
        assert not any(isinstance(expression_of(value), PlainTable) for value in model.graph.initializers.values())


def test_the_encoder_gives_what_the_cache_begins_with(graphs: Graphs) -> None:
    ports = graphs.ports()
    given = {port.name: port.axes for port in ports["encoder"].outputs}
    for form in ("decoder", "decoder_buffered"):
        names = [port.name for port in ports[form].inputs]
        assert names[2] == "cache_start" or names[2:4] == ["past_length", "cache_start"]
    assert given["cache_start"] == ("batch",)
    assert given["present.0.decoder.key"] == ("batch", 2, 5, 64)
    assert ports["encoder"].inputs == ports["encoder"].inputs[:2], "ids and mask, as without prompts"


def test_one_mask_hides_later_keys_and_those_before_the_start(graphs: Graphs) -> None:
    assert graphs.decoder is not None
    for model in (graphs.decoder, graphs.forms["decoder_buffered"][0]):
        start = next(value for value in model.graph.inputs if value.name == "cache_start")
        (unsqueeze,) = [use.node for use in start.uses()]
        (compare,) = [use.node for use in unsqueeze.outputs[0].uses()]
        assert compare.op_type == "GreaterOrEqual"
        (where,) = [use.node for use in compare.outputs[0].uses()]
        assert where.op_type == "Where"
        readers = [use.node.op_type for use in where.outputs[0].uses()]
        assert set(readers) == {"Attention"}


def test_ids_choose_rows_of_both_tables(graphs: Graphs) -> None:
    """The stem in onnx's reference evaluator, with tables of random numbers."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    graph = graphs.encoder.clone().graph
    rng, tables = np.random.default_rng(0), dict[str, np.ndarray]()
    for name, value in graph.initializers.items():
        expression = expression_of(value)
        if expression is not None:
            assert value.dtype is not None
            tables[name] = rng.normal(size=expression.shape).astype(np.float32)
            value.const_value = ir.tensor(tables[name], name=name)
    wanted = [*graph.outputs[-2:], next(n for n in graph if n.op_type == "RMSNormalization").inputs[0]]
    part = ir.convenience.extract(graph, list(graph.inputs), wanted)
    model = ir.to_proto(ir.Model(part, ir_version=10))
    for output in model.graph.output:
        output.type.CopyFrom(onnx.helper.make_tensor_type_proto(1, None))
    ids = np.array([[-2, 148, 149, 151], [0, 1, 150, 0], [-1, 3, 4, 5]])
    run = ReferenceEvaluator(model).run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    found = dict(zip([value.name for value in wanted], run, strict=True))
    assert found["cache_start"].tolist() == [0, 5, 3]
    assert np.array_equal(found[str(graph.outputs[-2].name)].reshape(3, -1), tables["prefix.1.value"][[2, 0, 1]])
    both = np.concatenate([tables["shared.weight"], tables[VIRTUAL_TOKENS]])
    hidden = found[str(wanted[-1].name)]
    seen = ids >= 0
    assert np.array_equal(hidden[seen], both[ids[seen]])

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from support.bundles import Workshop
from t5edge.bundle.precision import precision
from t5edge.exporter.form import Form
from t5edge.exporter.graph.rescale import Rescale
from t5edge.exporter.graphs import assemble_graphs
from t5edge.exporter.layouts.merged import BRANCH, merge_decoders
from t5edge.exporter.layouts.optimum import FIRST_STEP, LATER_STEPS

MERGED = "decoder_model_merged.onnx"
D_KV = 24
FORM = Form("concat", "optimum", 256)


def merged(demo: Workshop, guessed_d_kv: int) -> ir.Model:
    graphs = assemble_graphs(demo.checkpoint, demo.blocks(), precision("fp32"), Rescale(), FORM)
    return merge_decoders(graphs.others[FIRST_STEP], graphs.others[LATER_STEPS], guessed_d_kv)


def past_sizes(model: ir.Model) -> set[object]:
    shapes = [value.shape for value in model.graph.inputs if (value.name or "").startswith("past_key_values.")]
    return {str(shape[3]) for shape in shapes if shape is not None}


def test_the_last_axis_is_open_only_where_optimum_guesses_it_wrong(demo: Workshop) -> None:
    assert past_sizes(merged(demo, D_KV)) == {str(D_KV)}
    assert past_sizes(merged(demo, 16)) == {"d_kv"}


def test_the_given_models_stay_as_they_are(demo: Workshop) -> None:
    graphs = assemble_graphs(demo.checkpoint, demo.blocks(), precision("fp32"), Rescale(), FORM)
    before = {name: (len(model.graph), len(model.graph.initializers)) for name, model in graphs.others.items()}
    merge_decoders(graphs.others[FIRST_STEP], graphs.others[LATER_STEPS], D_KV)
    after = {name: (len(model.graph), len(model.graph.initializers)) for name, model in graphs.others.items()}
    assert before == after


def test_weights_lie_outside_the_branches_unless_they_are_quantized(optimum_demo: Callable[[str], Path]) -> None:
    inside = {}
    for name in ("fp32", "int8-weight"):
        model = onnx.load(optimum_demo(name) / MERGED, load_external_data=False)
        (choice,) = model.graph.node
        assert model.graph.initializer
        inside[name] = [value for branch in choice.attribute for value in branch.g.initializer]
        dequantized = {
            value
            for branch in choice.attribute
            for node in branch.g.node
            if node.op_type == "DequantizeLinear"
            for value in node.input
        }
        assert {value.name for value in inside[name]} <= dequantized
    assert not inside["fp32"]
    assert inside["int8-weight"]


def test_later_steps_return_no_cross_keys_and_values(optimum_demo: Callable[[str], Path]) -> None:
    session = onnxruntime.InferenceSession(str(optimum_demo("fp32") / MERGED))
    sizes = {"batch_size": 2, "encoder_sequence_length": 5, "decoder_sequence_length": 1, "d_kv": D_KV}
    sizes["past_decoder_sequence_length"] = 3
    feeds = {}
    for port in session.get_inputs():
        shape = [sizes.get(axis, axis) for axis in port.shape]
        feeds[port.name] = np.ones(shape, np.int64 if "int64" in port.type else np.float32)
    feeds[BRANCH] = np.array([True])
    outputs = dict(zip([port.name for port in session.get_outputs()], session.run(None, feeds), strict=True))
    assert outputs["present.1.encoder.value"].shape == (0, 8, 1, D_KV)
    assert outputs["present.1.decoder.value"].shape == (2, 8, 4, D_KV)
    assert outputs["logits"].shape == (2, 1, 187)

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from support.bundles import Workshop
from t5edge import pipeline
from t5edge.bundle.precision import precision
from t5edge.exporter.graph.assemble import Graphs
from t5edge.exporter.graph.rescale import Rescale
from t5edge.exporter.graph.whole_heads import keep_heads_together
from t5edge.exporter.graphs import save_graphs
from t5edge.kernels.fusion import FusionError
from t5edge.options import ExportOptions
from t5edge.progress import Silent


def assembled(demo: Workshop, name: str) -> Graphs:
    form = ExportOptions("t5-demo", name).form
    return pipeline.assemble_graphs(demo.checkpoint, demo.blocks(), precision(name), Rescale(), form)


def outputs(demo: Workshop, graphs: Graphs, folder: Path) -> list[Any]:
    folder.mkdir()
    save_graphs(graphs, demo.checkpoint, folder, Silent())
    ids = np.random.default_rng(0).integers(3, 180, (3, 37))
    mask = np.ones_like(ids)
    mask[1, :9], mask[2, 20:] = 0, 0
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "encoder.onnx", options)
    return list(session.run(None, {"input_ids": ids, "attention_mask": mask}))


@pytest.mark.parametrize("name", ["fp32", "fp16"])
def test_the_outputs_are_the_same_bits(demo: Workshop, tmp_path: Path, name: str) -> None:
    expected = outputs(demo, assembled(demo, name), tmp_path / "apart")
    graphs = assembled(demo, name)
    keep_heads_together(graphs.encoder, demo.checkpoint.architecture)
    found = outputs(demo, graphs, tmp_path / "together")
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_no_heads_are_moved_in_the_encoder(demo: Workshop) -> None:
    folder, layers = demo.bundle("fp32"), demo.checkpoint.architecture.encoder_layers
    nodes = onnx.load(folder / "encoder.onnx", load_external_data=False).graph.node
    attentions = [node for node in nodes if node.op_type == "Attention"]
    heads = [{entry.name: entry.i for entry in node.attribute}["q_num_heads"] for node in attentions]
    assert heads == [demo.checkpoint.architecture.num_heads] * layers
    makers = {output: node.op_type for node in nodes for output in node.output}
    assert {makers[name] for node in attentions for name in node.input[:3]} == {"Split"}
    readers = [node.op_type for node in nodes for name in node.input if name in {one.output[0] for one in attentions}]
    assert readers == ["MatMul"] * layers


def test_another_number_of_attentions_is_an_error(demo: Workshop) -> None:
    architecture = replace(demo.checkpoint.architecture, encoder_layers=9)
    with pytest.raises(FusionError, match=r"encoder: \d attentions read one split product, not 9"):
        keep_heads_together(assembled(demo, "fp32").encoder, architecture)

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import t5edge
from support.bundles import Workshop, tiny_workshop
from support.exports import fix_hashes
from support.optimum_layout import write_layout
from support.tiny_models import tiny_models
from t5edge import pipeline
from t5edge.bundle.manifest import Manifest, damaged_files
from t5edge.bundle.records import LayoutParity
from t5edge.errors import GateError
from t5edge.exporter.layouts.files import write_optimum_files
from t5edge.exporter.layouts.optimum import ENCODER, FIRST_STEP, LATER_STEPS, optimum_ports
from t5edge.parity.ladder import verify
from t5edge.parity.layout import check_optimum, layout_results

QUICK = ("umt5-tiny",)
"""A bias in every layer; t5-demo, which the other tests run, is untied and gated."""


def test_ports_are_optimums_in_its_order(demo: Workshop) -> None:
    ports = optimum_ports(demo.checkpoint.architecture, "float")
    names = {name: ([p.name for p in g.inputs], [p.name for p in g.outputs]) for name, g in ports.items()}
    halves = [f"{layer}.{origin}.{half}" for layer in (0, 1) for origin in ("decoder", "encoder") for half in KEY_VALUE]
    own = [name for name in halves if ".decoder." in name]
    assert names == {
        ENCODER: (["input_ids", "attention_mask"], ["last_hidden_state"]),
        FIRST_STEP: (
            ["encoder_attention_mask", "input_ids", "encoder_hidden_states"],
            ["logits", *(f"present.{half}" for half in halves)],
        ),
        LATER_STEPS: (
            ["encoder_attention_mask", "input_ids", *(f"past_key_values.{half}" for half in halves)],
            ["logits", *(f"present.{half}" for half in own)],
        ),
    }
    assert {port.axes[0] for graph in ports.values() for port in (*graph.inputs, *graph.outputs)} == {"batch_size"}


KEY_VALUE = ("key", "value")


def parity_of(folder: Path) -> LayoutParity:
    layout = Manifest.read(folder).layout
    assert layout is not None
    assert layout.parity is not None
    return layout.parity


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(tiny.name, marks=() if tiny.name in QUICK else pytest.mark.slow, id=tiny.name)
        for tiny in tiny_models()
    ],
)
def test_logits_are_those_of_our_graphs(tmp_path: Path, name: str) -> None:
    workshop = tiny_workshop(tmp_path, name)
    folder = write_layout(workshop, "fp32", tmp_path / "bundle")
    parity = parity_of(folder)
    assert parity.passed
    assert set(parity.errors) == {"two files", "merged"}
    assert max(parity.errors.values()) <= 1e-5


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8-weight", "int4-weight"])
def test_logits_of_the_demo_in_every_kind_of_precision(optimum_demo: Callable[[str], Path], name: str) -> None:
    parity = parity_of(optimum_demo(name))
    assert parity.passed
    assert max(parity.errors.values()) <= parity.limit


def test_hidden_states_are_those_of_our_encoder(optimum_demo: Callable[[str], Path]) -> None:
    ids = np.random.default_rng(0).integers(3, 180, (2, 12))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    ours, theirs = (
        onnxruntime.InferenceSession(str(optimum_demo("fp32") / f"{name}.onnx")).run(["last_hidden_state"], feeds)[0]
        for name in ("encoder", ENCODER)
    )
    assert np.array_equal(ours, theirs)


def test_weights_are_stored_once_and_our_graphs_are_the_same(
    demo: Workshop, optimum_demo: Callable[[str], Path]
) -> None:
    both, plain = (Manifest.read(path).files for path in (optimum_demo("fp32"), demo.bundle("fp32", "concat")))
    for name in ("encoder.onnx", "decoder.onnx", "weights.safetensors"):
        assert both[name] == plain[name], name
    added = {name: facts.bytes for name, facts in both.items() if name not in plain and facts.link is None}
    assert {"decoder_model.onnx", "decoder_with_past_model.onnx", "decoder_model_merged.onnx"} <= added.keys()
    assert sum(added.values()) < 150_000


def test_the_bundle_still_runs_and_every_graph_is_valid(optimum_demo: Callable[[str], Path]) -> None:
    folder = optimum_demo("fp32")
    assert t5edge.load(folder).generate_text(["spell 7", "read de dreizehn"]) == ["seven", "13"]
    for path in folder.glob("*.onnx"):
        onnx.checker.check_model(str(path))


def spoil(path: Path) -> None:
    """Another epsilon in one norm."""
    model = onnx.load(path, load_external_data=False)
    norm = next(node for node in model.graph.node if node.op_type == "RMSNormalization")
    next(attribute for attribute in norm.attribute if attribute.name == "epsilon").f = 0.5
    onnx.save(model, path)


@pytest.fixture
def quick_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """The export without its slow stage, the ladder."""
    monkeypatch.setattr(pipeline, "check_parity", lambda *_: None)


@pytest.mark.usefixtures("quick_export")
def test_an_export_holds_both_layouts(tmp_path: Path) -> None:
    bundle = t5edge.export("t5-demo", "fp16", out=tmp_path / "out", target=("onnxruntime",), layout="optimum")
    assert parity_of(bundle.folder).passed
    assert bundle.manifest.options is not None
    assert bundle.manifest.options["layout"] == "optimum"
    assert {"encoder.onnx", "decoder_model.onnx", "onnx/weights.safetensors"} <= set(bundle.manifest.files)
    assert damaged_files(bundle.folder) == []


@pytest.mark.usefixtures("quick_export")
def test_an_export_with_another_graph_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_and_spoil(folder: Path, *facts: Any) -> None:
        write_optimum_files(folder, *facts)
        spoil(folder / f"{FIRST_STEP}.onnx")

    monkeypatch.setattr("t5edge.exporter.layouts.files.write_optimum_files", write_and_spoil)
    with pytest.raises(GateError, match="the graphs of layout optimum do not give our logits"):
        t5edge.export("t5-demo", "fp32", out=tmp_path / "out", target=("onnxruntime",), layout="optimum")
    assert [path.name for path in tmp_path.iterdir()] == ["out.failed"]


def test_verify_compares_the_layout_again(tmp_path: Path, demo: Workshop) -> None:
    folder = write_layout(demo, "fp32", tmp_path / "bundle")
    name = "layout optimum"
    for verdict in (["pass", "pass"], ["fail", "pass"]):
        results = [found for found in verify(folder, checks=()).results if found.name == name]
        assert [found.verdict for found in results] == verdict
        assert [found.measure.rpartition(", ")[2] for found in results] == ["two files", "merged"]
        spoil(folder / f"{LATER_STEPS}.onnx")
        fix_hashes(folder)
    facts = (Manifest.read(folder), demo.checkpoint.architecture)
    assert not layout_results(folder, *facts, "tensorrt-rtx", blockwise=False)[0].ran
    assert not layout_results(folder, *facts, "onnxruntime", blockwise=True)[0].ran


def test_another_graph_is_found_out(tmp_path: Path, demo: Workshop) -> None:
    folder = write_layout(demo, "fp32", tmp_path / "bundle")
    spoil(folder / f"{LATER_STEPS}.onnx")
    parity = check_optimum(folder, demo.checkpoint.architecture, "float")
    assert not parity.passed
    assert parity.errors["two files"] > parity.limit >= parity.errors["merged"]

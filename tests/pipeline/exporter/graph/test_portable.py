"""Graphs without fused operators: what is in them, that they are the same model, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import t5edge
from support.bundles import Workshop
from support.exports import GATED, RELU, Exports
from support.tiny_models import tiny_models
from t5edge.bundle.manifest import PORTABLE_OPSET, Manifest
from t5edge.cli import main
from t5edge.errors import UserError
from t5edge.exporter.graph.portable import check_file, is_portable, make_portable, rewrite, too_new
from t5edge.kernels.fusion import FusionError
from t5edge.options import ExportOptions, recorded_options, wanted_row

NEWER = {"Attention", "RMSNormalization", "Gelu", "TensorScatter"}
PRECISIONS = ("fp32", "fp16", "int8", "int8-weight", "bf16")
CHEAP = ((GATED, "fp16"), (RELU, "int8"))
"""A gated model and a plain one, half floats and integers; the rest is slow."""


def graphs_of(folder: Path) -> dict[str, onnx.ModelProto]:
    return {path.stem: onnx.load(path, load_external_data=False) for path in folder.glob("*.onnx")}


def check_graphs(folder: Path) -> None:
    graphs = graphs_of(folder)
    assert set(graphs) == {"encoder", "decoder"}
    for name, graph in graphs.items():
        assert ([entry.version for entry in graph.opset_import], graph.ir_version) == ([17], 8)
        assert not NEWER & {node.op_type for node in graph.graph.node}
        assert {onnx.defs.get_schema(node.op_type, 17).deprecated for node in graph.graph.node} == {False}
        check_file(folder / f"{name}.onnx")


def check_parity(exports: Exports, tiny: str, precision: str, out: Path, **options: str) -> None:
    exports.checkpoint(tiny)
    source = str(exports.root / tiny)
    folder = exports.export(source, precision, out, opset=17, max_target_length=64, **options)
    check_graphs(folder)
    manifest = Manifest.read(folder)
    assert (manifest.passed, manifest.opset, manifest.portable) == (True, PORTABLE_OPSET, True)


@pytest.mark.parametrize(("tiny", "precision"), CHEAP)
def test_parity(exports: Exports, tmp_path: Path, tiny: str, precision: str) -> None:
    folder = exports.bundle(tiny, precision, opset=17)
    check_graphs(folder)
    shutil.copytree(folder, tmp_path / "bundle")
    assert exports.verify(
        tmp_path / "bundle", tiny, "weights", "graphs", "arithmetic", "2", "3 logits", "3 range"
    ).passed


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tiny", [tiny.name for tiny in tiny_models()])
def test_parity_of_every_tiny_model(exports: Exports, tmp_path: Path, tiny: str, precision: str) -> None:
    check_parity(exports, tiny, precision, tmp_path / "bundle")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "int8-weight"])
@pytest.mark.parametrize("tiny", [tiny.name for tiny in tiny_models()])
def test_parity_of_integers_in_float16(exports: Exports, tmp_path: Path, tiny: str, precision: str) -> None:
    check_parity(exports, tiny, precision, tmp_path / "bundle", compute="fp16")


def test_weights_and_costs_are_those_of_the_other_form(exports: Exports) -> None:
    """The same bytes at the same places; the products are counted alike, and constants are a few bytes more."""
    for tiny, precision in CHEAP:
        standard, portable = (Manifest.read(exports.bundle(tiny, precision, opset)) for opset in (23, 17))
        assert portable.hashes["weights.safetensors"] == standard.hashes["weights.safetensors"]
        assert portable.ports == {name: standard.ports[name] for name in ("encoder", "decoder")}
        assert portable.costs is not None
        assert standard.costs is not None
        for name, cost in portable.costs.items():
            other = standard.costs[name]
            assert cost.matmul_elements == other.matmul_elements
            assert (cost.attentions, cost.attention_width) == (other.attentions, other.attention_width)
            assert other.bytes_read < cost.bytes_read < other.bytes_read + 1000


def test_float32_is_what_the_other_form_computes(demo: Workshop) -> None:
    texts = np.random.default_rng(0).integers(3, 180, (3, 20))
    targets = np.random.default_rng(1).integers(3, 180, (3, 12))
    mask = np.ones_like(texts)
    mask[-1, 12:] = 0
    found, other = (t5edge.load(folder) for folder in (demo.portable("fp32"), demo.bundle("fp32")))
    logits, wanted = (model.logits(texts, mask, targets) for model in (found, other))
    assert np.linalg.norm(logits - wanted) / np.linalg.norm(wanted) < 2e-6
    for settings in ({}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 4}):
        tokens, expected = (model.generate(texts, mask, max_new_tokens=24, **settings) for model in (found, other))
        np.testing.assert_array_equal(tokens, expected)


def test_the_commands_work(demo: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(demo.portable("fp32"), tmp_path / "bundle"))
    assert main(["inspect", str(folder)]) == 0
    assert "opset 17" in " ".join(capsys.readouterr().out.split())
    assert main(["generate", str(folder), "spell 1984"]) == 0
    assert "one thousand" in capsys.readouterr().out
    assert main(["verify", str(folder), "--time-budget", "0"]) == 0


def test_an_old_bundle_and_a_plain_export_have_the_other_form(demo: Workshop) -> None:
    manifest = Manifest.read(demo.bundle("fp32"))
    assert (manifest.opset, manifest.portable) == (23, False)
    assert "opset" not in manifest.to_dict()
    assert "opset" not in recorded_options(ExportOptions("t5-demo"))
    assert recorded_options(ExportOptions("t5-demo", opset=17))["opset"] == 17


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"precision": "int4-weight"}, r"--precision int4-weight and --opset 17: 4-bit weights begin with opset 21"),
        ({"cache": "in-place"}, r"--cache in-place and --opset 17: .*TensorScatter.* leave out --cache"),
        ({"cache": "both"}, r"--cache both and --opset 17"),
    ],
)
def test_what_opset_17_cannot_hold_is_refused(options: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        wanted_row(ExportOptions("t5-demo", opset=17, **options))


def test_another_opset_is_refused() -> None:
    with pytest.raises(UserError, match=r"--opset is '18'; choose one of 23, 17"):
        ExportOptions("t5-demo", opset=18)


def test_an_operator_that_is_left_fails_the_export(demo: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    from t5edge import pipeline
    from t5edge.bundle.precision import precision
    from t5edge.exporter.graph.rescale import Rescale
    from t5edge.kernels import primitives

    form = ExportOptions("t5-demo", opset=17).form
    graphs = pipeline.assemble_graphs(demo.checkpoint, demo.blocks(), precision("fp32"), Rescale(), form)
    kept = {name: expansion for name, expansion in primitives.EXPANSIONS.items() if name not in ("Gelu", "Split")}
    monkeypatch.setattr(primitives, "EXPANSIONS", kept)
    with pytest.raises(FusionError, match="encoder: Gelu, Split with num_outputs not in opset 17"):
        make_portable(graphs)


def test_a_graph_of_wrong_types_is_found(demo: Workshop, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo.portable("fp16"), tmp_path / "bundle"))
    model = ir.load(folder / "decoder.onnx")
    cast = next(node for node in model.graph if node.op_type == "Cast")
    ir.convenience.replace_all_uses_with(cast.outputs[0], cast.inputs[0])
    ir.save(model, folder / "decoder.onnx")
    with pytest.raises(FusionError, match=r"decoder.onnx is not valid in opset 17"):
        check_file(folder / "decoder.onnx")


def test_rewriting_twice_changes_nothing(demo: Workshop) -> None:
    model = ir.load(demo.portable("fp16") / "decoder.onnx")
    assert is_portable(model)
    assert too_new(model) == []
    nodes = [node.name for node in model.graph]
    rewrite(model)
    assert [node.name for node in model.graph] == nodes

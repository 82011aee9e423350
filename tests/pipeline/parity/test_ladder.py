from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from support.exports import GATED, RELU, Exports, checks
from support.tiny_models import find_tiny_model, save_tiny_model
from t5edge.bundle.manifest import Manifest, damaged_files
from t5edge.errors import GateError, UserError
from t5edge.exporter.graph.rescale import Rescale, StackScale
from t5edge.parity.ladder import find_checkpoint, verify
from t5edge.runtime.model import load

QUANTIZED = ("int8", "int8-weight")
HOT = 1.5 * 2.0**13
RESIDUAL_WRITERS = ("shared.weight", ".o.weight", ".wo.weight")


@pytest.fixture(scope="module")
def hot(exports: Exports) -> Path:
    """A checkpoint whose residual stream runs far beyond float16's 65504, every weight within it."""
    folder = save_tiny_model(find_tiny_model(GATED), exports.root / "hot", seed=1)
    state = load_file(folder / "model.safetensors")
    for name, tensor in state.items():
        if name.endswith(RESIDUAL_WRITERS):
            state[name] = tensor * HOT
            assert float(state[name].abs().max()) < 65504
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_ladder_writes_its_report_and_the_manifest_its_results(exports: Exports, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exports.bundle(GATED), tmp_path / "bundle"))
    before = Manifest.read(folder)
    report = exports.verify(folder, GATED, "2", "8")
    manifest = Manifest.read(folder)
    assert json.loads((folder / "parity.json").read_text()) == report.to_dict()
    assert manifest.parity == report.without_details()
    assert [result.verdict[:7] for result in report.results] == ["pass", "pass", "not app"]
    assert damaged_files(folder) == []
    assert replace(manifest, parity=before.parity, files=before.files) == before


@pytest.mark.parametrize("precision", ["fp16", *(pytest.param(name, marks=pytest.mark.slow) for name in QUANTIZED)])
def test_a_residual_beyond_float16_passes_with_the_rescale(
    exports: Exports, hot: Path, tmp_path: Path, precision: str
) -> None:
    folder = exports.export(str(hot), precision, tmp_path / "bundle", compute="fp16")
    manifest = Manifest.read(folder)
    assert manifest.parity is not None
    assert manifest.parity.passed
    assert manifest.precision.compute == "float16"
    assert "3 range" in {result.name for result in manifest.parity.results if result.verdict == "pass"}
    stacks = (manifest.rescale.encoder, manifest.rescale.decoder)
    assert max(stack.largest_residual or 0.0 for stack in stacks) > 65504
    assert all(stack.k > 0 and (stack.headroom or 0.0) >= 4 for stack in stacks)


@pytest.mark.parametrize("precision", ["fp16", pytest.param("int8", marks=pytest.mark.slow)])
def test_without_the_rescale_it_fails_and_is_kept_for_study(
    exports: Exports, hot: Path, tmp_path: Path, precision: str
) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(GateError, match=r"kept for study as '.*bundle\.failed'"):
        exports.export(str(hot), precision, out, no_rescale=True, compute="fp16")
    assert not out.exists()
    data = json.loads((tmp_path / "bundle.failed" / "parity.json").read_text())
    broken = [entry["measure"] for entry in data["rungs"] if entry["name"] == "3 range" and entry["verdict"] == "fail"]
    assert "NaN or infinity in the encoder output" in broken
    assert "NaN or infinity in the logits" in broken


@pytest.mark.parametrize(("tiny", "t_source"), [(GATED, "wi_1"), (RELU, "wi")])
def test_the_rescale_is_exact_to_the_bit_in_float32(exports: Exports, tmp_path: Path, tiny: str, t_source: str) -> None:
    a = exports.checkpoint(tiny).architecture
    scale = Rescale(
        StackScale(k=3, t=(2,) * a.encoder_layers, t_source=t_source),
        StackScale(k=3, t=(2,) * a.decoder_layers, t_source=t_source),
    )
    source = str(exports.root / tiny)
    scaled = exports.export(source, "fp32", tmp_path / "scaled", rescale=scale, no_verify=True)
    random = np.random.default_rng(0)
    ids, targets = random.integers(3, a.vocab_size, (2, 3, 19))
    mask = (np.arange(19) < np.array([[19], [7], [1]])).astype(np.int64)
    plain, rescaled = (load(folder).logits(ids, mask, targets) for folder in (exports.bundle(tiny), scaled))
    np.testing.assert_array_equal(plain, rescaled)


def test_a_finished_bundle_is_verified_from_what_its_manifest_says(exports: Exports, tmp_path: Path) -> None:
    folder = exports.bundle(GATED)
    before = (folder / "bundle.json").read_bytes()
    junit = tmp_path / "parity.xml"
    report = verify(folder, junit=junit, checks=checks("2", "4"))
    assert report.passed
    assert report.facts["checkpoint_touched"] is False
    assert list(report.verdicts()) == ["files", "2 encoder", "4 cache"]
    assert ElementTree.parse(junit).getroot()[0].get("failures") == "0"
    assert (folder / "bundle.json").read_bytes() == before


def test_another_checkpoint_of_the_same_shape_fails(exports: Exports, tmp_path: Path) -> None:
    other = save_tiny_model(find_tiny_model(GATED), tmp_path / "other", seed=9)
    report = verify(exports.bundle(GATED), other, checks=checks("2", "3 logits"))
    failed = list(dict.fromkeys(result.name for result in report.failures))
    assert failed[:4] == ["2 encoder", "3 logits", "encoder stem", "encoder block 0"]
    assert report.facts["checkpoint_touched"] is True


def test_a_changed_file_fails_before_anything_is_run(exports: Exports, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exports.bundle(GATED), tmp_path / "bundle"))
    with (folder / "weights.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    (folder / "decoder.onnx").unlink()
    report = verify(folder)
    (failure,) = report.failures
    assert failure.name == "files"
    assert failure.details["files"] == ["decoder.onnx", "weights.safetensors"]
    assert failure.measure == "missing or changed files: decoder.onnx, weights.safetensors"
    assert {v for name, v in report.verdicts().items() if name != "files"} == {
        "not run: files of the bundle are damaged"
    }


def test_an_untrained_bundle_is_verified_from_its_seed(exports: Exports, tmp_path: Path) -> None:
    exports.checkpoint(GATED)
    config = tmp_path / "only-config"
    config.mkdir()
    shutil.copy(exports.root / GATED / "config.json", config)
    folder = exports.export(str(config), "fp32", tmp_path / "bundle", random_weights=5, no_verify=True)
    assert verify(folder, checks=checks("2")).passed


def test_the_users_errors_say_what_to_do(exports: Exports, tmp_path: Path) -> None:
    bundle = exports.bundle(GATED)
    with pytest.raises(UserError, match=r"no bundle.json; pass a bundle written by 't5edge export'"):
        verify(tmp_path)
    with pytest.raises(UserError, match="target 'abacus' is unknown"):
        verify(bundle, target="abacus", checks=())
    exports.checkpoint(RELU)
    with pytest.raises(UserError, match=r"is not a bundle of .* d_model: bundle 104, checkpoint 72.*--checkpoint"):
        verify(bundle, exports.root / RELU)
    moved = replace(Manifest.read(bundle), variant=str(tmp_path / "gone"))
    with pytest.raises(UserError, match="was exported from it; name another place with --checkpoint"):
        find_checkpoint(bundle, moved, None)
    with pytest.raises(UserError, match="choose another --junit"):
        verify(bundle, junit=bundle / "bundle.json" / "no.xml", checks=checks("8"))


def test_weights_of_the_reference_are_not_the_bundles(exports: Exports) -> None:
    """PyTorch reads the checkpoint, never the bundle: an error in the export cannot cancel out."""
    checkpoint = exports.checkpoint(GATED)
    stored = exports.bundle(GATED).resolve()
    assert checkpoint.folder is not None
    assert stored not in checkpoint.folder.resolve().parents
    assert torch.equal(
        checkpoint.read("shared.weight"), load_file(checkpoint.folder / "model.safetensors")["shared.weight"]
    )

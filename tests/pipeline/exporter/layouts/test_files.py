from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from support.tiny_models import find_tiny_model, save_tiny_model
from t5edge import cli, pipeline
from t5edge.bundle.folder import writing
from t5edge.bundle.manifest import Manifest, damaged_files
from t5edge.bundle.precision import PRECISIONS, precision
from t5edge.bundle.records import Layout, LayoutParity
from t5edge.errors import GateError, UserError
from t5edge.exporter.checkpoint.open import open_checkpoint
from t5edge.exporter.layouts.files import client_config, js_dtype, link
from t5edge.options import ExportOptions

JS_FILES = {
    "fp32": ("encoder_model.onnx", "decoder_model_merged.onnx"),
    "fp16": ("encoder_model_fp16.onnx", "decoder_model_merged_fp16.onnx"),
    "int8-weight": ("encoder_model_int8.onnx", "decoder_model_merged_int8.onnx"),
    "int4-weight": ("encoder_model_q4.onnx", "decoder_model_merged_q4.onnx"),
}


@pytest.mark.parametrize("name", JS_FILES)
def test_transformers_js_finds_its_files_by_the_precision(optimum_demo: Callable[[str], Path], name: str) -> None:
    folder = optimum_demo(name)
    assert {path.name for path in (folder / "onnx").iterdir()} == {*JS_FILES[name], "weights.safetensors"}
    dtype = json.loads((folder / "config.json").read_text())["transformers.js_config"]["dtype"]
    assert dtype == js_dtype(precision(name))
    for graph in JS_FILES[name]:
        onnxruntime.InferenceSession(str(folder / "onnx" / graph))


@pytest.mark.parametrize(("name", "linked"), [("fp32", True), ("int8-weight", False)])
def test_links_count_nothing_and_move_with_the_folder(
    optimum_demo: Callable[[str], Path], tmp_path: Path, name: str, linked: bool
) -> None:
    folder = Path(shutil.copytree(optimum_demo(name), tmp_path / "moved", symlinks=True))
    manifest = Manifest.read(folder)
    files = manifest.files
    assert files["onnx/weights.safetensors"].link == ("weights.safetensors" if linked else None)
    assert files["onnx/weights.safetensors"].sha256 == files["weights.safetensors"].sha256
    stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    assert manifest.stored_bytes == stored - (folder / "bundle.json").stat().st_size
    assert damaged_files(folder) == []
    onnxruntime.InferenceSession(str(folder / "onnx" / JS_FILES[name][1]))


def test_a_copy_where_links_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    (tmp_path / "stored").write_bytes(b"graph")
    (tmp_path / "below").mkdir()
    link(tmp_path / "stored", tmp_path / "below" / "name")
    assert not (tmp_path / "below" / "name").is_symlink()
    assert (tmp_path / "below" / "name").read_bytes() == b"graph"


def test_configs_spell_out_what_clients_want(optimum_demo: Callable[[str], Path], tmp_path: Path) -> None:
    folder = optimum_demo("fp32")
    given = open_checkpoint("t5-demo").config
    config = json.loads((folder / "config.json").read_text())
    assert {key: config[key] for key in given} == given
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert (tokenizer["tokenizer_class"], tokenizer["pad_token"]) == ("PreTrainedTokenizerFast", "<pad>")
    bare = save_tiny_model(find_tiny_model("umt5-tiny"), tmp_path, seed=0, layout="transformers4")
    spelled = client_config(open_checkpoint(str(bare)), "fp16")
    assert (spelled["model_type"], spelled["num_decoder_layers"]) == ("umt5", 2)


def test_inspect_shows_the_layout(optimum_demo: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(optimum_demo("fp32"))]) == 0
    text = capsys.readouterr().out
    assert "link to weights.safetensors" in text
    assert "decoder_model_merged.onnx" in text
    assert cli.main(["inspect", str(optimum_demo("fp32")), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["graphs"]) == {"encoder", "decoder"}


def test_only_precisions_without_kernels_are_refused() -> None:
    refused = []
    for row in PRECISIONS:
        try:
            js_dtype(row)
        except UserError:
            refused.append(row.name)
    assert refused == ["bf16"]


def test_bf16_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    given = ["--variant", "t5-demo", "--precision", "bf16", "--layout", "optimum", "--out", str(out)]
    assert cli.main(["export", *given]) == 2
    assert "--layout optimum does not go with --precision bf16" in capsys.readouterr().err
    assert not out.exists()


def test_an_unknown_layout_is_the_users_error() -> None:
    with pytest.raises(UserError, match="--layout is 'other'; choose one of t5edge, optimum"):
        ExportOptions("t5-demo", layout="other")


def spoil(folder: Path, bundle: Path) -> None:
    """Fill ``folder`` with the bundle and a layout that failed its comparison, then judge it."""
    shutil.copytree(bundle, folder, symlinks=True, dirs_exist_ok=True)
    layout = Layout("optimum", LayoutParity({"merged": 0.5}, limit=1e-5, passed=False))
    manifest = replace(Manifest.read(folder), layout=layout)
    manifest.write(folder)
    raise GateError(" ".join(pipeline.failed_gates(manifest, ExportOptions("x"))))


def test_other_logits_fail_the_export(optimum_demo: Callable[[str], Path], tmp_path: Path) -> None:
    bundle, out = optimum_demo("fp32"), tmp_path / "out"
    assert pipeline.failed_gates(Manifest.read(bundle), ExportOptions("x")) == []
    with (
        pytest.raises(GateError, match=r"merged: 0\.5, limit 1e-05.*kept for study"),
        writing(out, force=False) as folder,
    ):
        spoil(folder, bundle)
    assert not out.exists()
    assert (tmp_path / "out.failed" / "onnx" / "weights.safetensors").is_file()

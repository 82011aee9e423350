"""Without fused operators: encoders alone, sentence embeddings, learnt prompts, and optimum's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import t5edge
from support.encoders import Bundles
from support.exports import GATED, RELU, Exports
from support.prompts import prompt_config, save_prompt
from support.sentences import TEXTS, dense, reference, save_sentence_model
from t5edge import pipeline

pytestmark = pytest.mark.slow


def export(source: Path, precision: str, out: Path, **options: object) -> Path:
    """A bundle that passed its parity, of opset 17 throughout."""
    settings = {"target": ("onnxruntime",), "opset": 17, "max_target_length": 64, **options}
    bundle = pipeline.export(str(source), precision, out=out, **settings)
    assert bundle.passed is True
    for path in bundle.folder.rglob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        assert ([entry.version for entry in model.opset_import], model.ir_version) == ([17], 8)
    return bundle.folder


@pytest.mark.parametrize(("name", "precision"), [(GATED, "fp16"), (RELU, "int8")])
def test_an_encoder_alone(encoders: Bundles, tmp_path: Path, name: str, precision: str) -> None:
    export(encoders(name), precision, tmp_path / "bundle")


@pytest.mark.parametrize("pooling", ["mean", "mean_sqrt_len_tokens", "max", "weightedmean", "lasttoken"])
def test_sentence_embeddings(tmp_path: Path, pooling: str) -> None:
    """Behind the pooling everything is float32, in a float16 graph too; GELU is by the error function there."""

    def behind(size: int) -> list[object]:
        from sentence_transformers.sentence_transformer.modules import Normalize

        return [dense(size, 48, "GELU"), Normalize()]

    source = save_sentence_model(tmp_path / "model", GATED, pooling, behind)
    for precision, limit in (("fp32", 1e-5), ("fp16", 5e-3)):
        folder = export(source, precision, tmp_path / precision)
        found, wanted = t5edge.load(folder).embed(list(TEXTS)), reference(source).encode(list(TEXTS))
        assert np.abs(found - wanted).max() < limit


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_learnt_prompts(exports: Exports, tmp_path: Path, kind: str) -> None:
    exports.checkpoint(GATED)
    base = exports.root / GATED
    prompt = save_prompt(base, tmp_path / "prompt", prompt_config(kind, base, 3))
    export(base, "fp16", tmp_path / "bundle", prompt=(f"own={prompt}",))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_layout_of_optimum(exports: Exports, tmp_path: Path, precision: str) -> None:
    exports.checkpoint(RELU)
    folder = export(exports.root / RELU, precision, tmp_path / "bundle", layout="optimum")
    decoders = {"decoder_model.onnx", "decoder_with_past_model.onnx", "decoder_model_merged.onnx"}
    assert decoders <= {path.name for path in folder.glob("*.onnx")}
    assert len(list((folder / "onnx").glob("decoder_model_merged*.onnx"))) == 1, "transformers.js finds its own there"


@pytest.mark.parametrize("head", ["TokenClassification", "QuestionAnswering", "SequenceClassification"])
def test_heads(tmp_path: Path, head: str) -> None:
    import transformers

    from support.tiny_models import find_tiny_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.T5Config(**find_tiny_model(GATED).config)
        getattr(transformers, f"T5For{head}")(config).save_pretrained(tmp_path / "model")
    export(tmp_path / "model", "fp32", tmp_path / "bundle")

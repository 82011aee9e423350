"""Models of sentence-transformers over T5: recognized, exported with their pooling, run; against the library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

from support.encoders import GATED, PER_LAYER_BIAS, RELU
from support.exports import fix_hashes, stored_tensor
from support.gpus import SetGpus
from support.host_device import pretend_gpu
from support.sentences import MAX_LENGTH, TEXTS, Sentences, dense, export, reference, save_sentence_model
from t5edge import pipeline
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.precision import PRECISIONS
from t5edge.bundle.records import ACTIVATIONS, SentenceStep
from t5edge.cli import main
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.open import open_checkpoint
from t5edge.exporter.checkpoint.sentence_files import read_modules
from t5edge.parity.ladder import CHECKS, verify
from t5edge.runtime.model import BundleModel, load
from t5edge.runtime.tensorrt.flavor import TensorRT

POOLINGS = ("mean", "max", "cls", "lasttoken", "weightedmean", "mean_sqrt_len_tokens")
LEAST_COSINE = {
    "fp32": 1 - 1e-7,
    "fp16": 1 - 1e-5,
    "bf16": 0.999,
    "int8": 0.99,
    "int8-weight": 0.999,
    "int4-weight": 0.97,
}
"""Cosines that tiny models keep, by precision: measured on the three structures, with headroom."""


def cosines(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return np.sum(found.astype(np.float64) * expected, axis=1) / lengths


@pytest.mark.parametrize("name", [RELU, GATED, PER_LAYER_BIAS])
def test_embeddings_are_the_library_s_own(sentences: Sentences, name: str) -> None:
    folder = sentences(name, "fp32")
    model, exact = load(folder), reference(sentences(name))
    found, expected = model.embed(TEXTS), exact.encode(list(TEXTS))
    assert (found.dtype, found.shape) == (np.float32, (len(TEXTS), 48))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert cosines(found, expected).min() >= LEAST_COSINE["fp32"]
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert len(model.tokenizer.ids([TEXTS[-1]])[0]) > MAX_LENGTH, "a text is cut, and keeps its end token"
    for text in TEXTS:
        np.testing.assert_allclose(model.embed([text])[0], found[TEXTS.index(text)], atol=1e-6)


@pytest.mark.parametrize("precision", [row.name for row in PRECISIONS if row.name != "fp32"])
def test_pooling_stays_in_float32_and_every_precision_keeps_the_direction(sentences: Sentences, precision: str) -> None:
    folder = sentences(GATED, precision)
    found, expected = load(folder).embed(TEXTS), reference(sentences(GATED)).encode(list(TEXTS))
    assert found.dtype == np.float32
    assert cosines(found, expected).min() >= LEAST_COSINE[precision]
    graph = onnx.load(folder / "encoder.onnx", load_external_data=False).graph
    outputs = {value.name: value.type.tensor_type.elem_type for value in graph.output}
    assert list(outputs) == ["last_hidden_state", "sentence_embedding"]
    assert outputs["sentence_embedding"] == onnx.TensorProto.FLOAT
    stored = {name: tensor for name, tensor in load_file(folder / "weights.safetensors").items() if "sentence." in name}
    assert {name: str(tensor.dtype) for name, tensor in stored.items()} == {"sentence.2.linear.weight": "torch.float32"}


@pytest.mark.slow
@pytest.mark.parametrize("precision", [row.name for row in PRECISIONS])
@pytest.mark.parametrize("name", [RELU, GATED, PER_LAYER_BIAS])
def test_every_structure_passes_in_every_precision(
    sentences: Sentences, tmp_path: Path, name: str, precision: str
) -> None:
    options = {"out": tmp_path / "b", "target": ("onnxruntime",)}
    assert pipeline.export(str(sentences(name)), precision, **options).passed


def test_the_ladder_judges_embeddings_and_sees_what_is_wrong_with_them(sentences: Sentences, tmp_path: Path) -> None:
    options = {"out": tmp_path / "b", "target": ("onnxruntime",)}
    bundle = pipeline.export(str(sentences(PER_LAYER_BIAS)), "fp16", **options)
    assert bundle.passed
    checks = json.loads((bundle.folder / "parity.json").read_text())["rungs"]
    judged = {entry["name"] for entry in checks if "sentence embeddings" in entry["measure"]}
    assert judged == {"graphs", "2 encoder", "3 texts", "3 range"}
    weight = stored_tensor(bundle.folder, "sentence.2.linear.weight")
    weight[:, :40] = weight[:, :40][::-1].copy()
    fix_hashes(bundle.folder)
    report = verify(bundle.folder, checks=[check for check in CHECKS if check.name in ("weights", "2 encoder")])
    assert {result.name for result in report.failures} >= {"weights", "2 encoder"}
    assert "1 - cosine of sentence embeddings, worst text" in {result.measure for result in report.failures}


@pytest.mark.slow
def test_layer_by_layer_it_passes_too(sentences: Sentences) -> None:
    report = verify(sentences(GATED, "fp16"), blockwise=True)
    assert not report.failures
    assert any("sentence embeddings" in result.measure for result in report.results)


@pytest.mark.parametrize(
    ("pooling", "modules"),
    [
        (
            ("mean", "max"),
            lambda size: [dense(size, 32, "Tanh", bias=True), dense(32, 24, "ReLU"), dense(24, 16, "GELU")],
        ),
        (
            ("cls", "lasttoken", "weightedmean"),
            lambda size: [dense(size, 20, "SiLU", bias=True), dense(20, 8, "Sigmoid")],
        ),
        ("mean_sqrt_len_tokens", lambda size: []),
    ],
    ids=["mean and max", "three", "no module"],
)
def test_poolings_and_activations(tmp_path: Path, pooling: Any, modules: Any) -> None:
    source = save_sentence_model(tmp_path / "model", RELU, pooling, modules)
    model = load(export(source, "fp32", tmp_path / "b"))
    np.testing.assert_allclose(model.embed(TEXTS), reference(source).encode(list(TEXTS)), rtol=1e-4, atol=2e-6)
    facts = model.manifest.sentence
    assert facts is not None
    assert facts.pooling == ((pooling,) if isinstance(pooling, str) else pooling)


def test_prompts_are_put_before_texts(tmp_path: Path) -> None:
    prompts = {"query": "spell ", "none": ""}
    source = save_sentence_model(tmp_path / "model", RELU, prompts=prompts, default_prompt_name="query")
    model, exact = load(export(source, "fp32", tmp_path / "b")), reference(source)
    for options in ({}, {"prompt_name": "none"}, {"prompt": ""}, {"prompt": "add "}):
        np.testing.assert_allclose(model.embed(TEXTS, **options), exact.encode(list(TEXTS), **options), atol=1e-6)
    with pytest.raises(UserError, match="the model has no prompt 'passage'; known are document, none, query"):
        model.embed(TEXTS, prompt_name="passage")


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_prompt_that_is_not_pooled(tmp_path: Path, pooling: str) -> None:
    """As Instructor's: seen by every token, part of no mean."""
    source = save_sentence_model(tmp_path / "model", GATED, pooling, include_prompt=False)
    model, exact = load(export(source, "fp32", tmp_path / "b")), reference(source)
    for prompt in ("", "spell 7: "):
        found, expected = model.embed(TEXTS, prompt=prompt), exact.encode(list(TEXTS), prompt=prompt)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    ids, mask = model.tokenizer.encode(["spell 1984", "spell 7"])
    mask[:, :2] = 2
    marked, plain = model.embed_ids(ids, mask), model.embed_ids(ids, np.minimum(mask, 1))
    assert np.allclose(marked, plain, atol=1e-3) == (pooling == "lasttoken")
    with pytest.raises(UserError, match="attention_mask runs from 0 to 3"):
        model.embed_ids(ids, np.where(mask == 2, 3, mask))


def test_the_ladder_marks_prompts_that_are_not_pooled(tmp_path: Path) -> None:
    """A bundle passes with them, and fails where its graph pools them."""
    pooled, left_out = (
        save_sentence_model(tmp_path / str(include), RELU, "mean", include_prompt=include) for include in (True, False)
    )
    bundle = pipeline.export(str(left_out), "fp32", out=tmp_path / "b", target=("onnxruntime",))
    assert bundle.passed
    wrong = Path(shutil.copytree(bundle.folder, tmp_path / "wrong"))
    shutil.copy(export(pooled, "fp32", tmp_path / "c") / "encoder.onnx", wrong / "encoder.onnx")
    fix_hashes(wrong)
    report = verify(wrong, checks=[check for check in CHECKS if check.name in ("2 encoder", "3 texts", "5 padding")])
    assert {result.name for result in report.failures} == {"2 encoder", "3 texts"}
    assert all("sentence embeddings" in result.measure for result in report.failures)


def test_the_engine_gives_embeddings_too(
    sentences: Sentences, tmp_path: Path, rtx: TensorRT, set_gpus: SetGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from t5edge.engines.build import build_engines

    folder = Path(shutil.copytree(sentences(GATED, "fp16"), tmp_path / "b"))
    set_gpus("8.6")
    pretend_gpu(monkeypatch, rtx, folder)
    (entry,) = build_engines(folder, "tensorrt-rtx").values()
    assert not isinstance(entry.run, str)
    assert entry.run.verdict == "pass"
    np.testing.assert_allclose(load(folder, target="tensorrt-rtx").embed(TEXTS), load(folder).embed(TEXTS), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("include_prompt", [False, True])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_engines_are_built_of_every_pooling_and_activation(
    tmp_path: Path, rtx: TensorRT, no_gpu: None, precision: str, include_prompt: bool
) -> None:
    def modules(size: int) -> list[Any]:
        sizes = [size, *range(40, 40 - 6 * len(ACTIVATIONS), -6)]
        return [dense(*pair, name, bias=True) for *pair, name in zip(sizes, sizes[1:], ACTIVATIONS, strict=False)]

    source = save_sentence_model(tmp_path / "model", RELU, POOLINGS, modules, include_prompt=include_prompt)
    options = {"target": ("tensorrt-rtx",), "compute_capability": ("8.6",)}
    entries = Manifest.read(export(source, precision, tmp_path / "b", **options)).engines["tensorrt-rtx"]
    assert list(entries["8.6"].graphs) == ["encoder"]


def test_the_command_writes_an_array(
    sentences: Sentences, tmp_path: Path, capsys: pytest.CaptureFixture[str], encoders: Callable[..., Path]
) -> None:
    folder, out = sentences(GATED, "fp32"), tmp_path / "x.npy"
    assert main(["encode", str(folder), *TEXTS, "--out", str(out)]) == 0
    assert np.array_equal(np.load(out), load(folder).embed(TEXTS))
    assert "4 embeddings of 48 numbers" in capsys.readouterr().out
    assert main(["encode", str(folder), TEXTS[0], "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(shown["embeddings"], load(folder).embed(TEXTS[:1]), atol=1e-6)
    assert main(["inspect", str(folder)]) == 0
    assert "sentence embeddings of 48 numbers: mean, dense 48, normalize" in capsys.readouterr().out
    assert main(["generate", str(folder), "a"]) == 2
    assert "t5edge encode" in capsys.readouterr().err
    alone = encoders(RELU, "fp32")
    for arguments, said in {
        (): "name a file for them with --out",
        ("--prompt", "p"): "makes no sentence embeddings, which prompts are for",
        ("--out", str(tmp_path / "x.npz")): "has no tokenizer.json",
    }.items():
        assert main(["encode", str(alone), "a", *arguments]) == 2
        assert said in capsys.readouterr().err


def test_a_bundle_without_embeddings_says_so(encoders: Callable[..., Path]) -> None:
    model = load(encoders(RELU, "fp32"))
    with pytest.raises(UserError, match=r"makes no sentence embeddings; call encode\(\)"):
        model.embed(["a"])
    with pytest.raises(UserError, match="makes no sentence embeddings"):
        model.embed_ids(np.ones((1, 3), np.int64))


def test_the_manifest_states_how_and_an_encoder_alone_is_another_model(sentences: Sentences, tmp_path: Path) -> None:
    folder = sentences(GATED, "fp32")
    facts = Manifest.read(folder).sentence
    assert facts is not None
    assert facts.steps == (
        SentenceStep("dense", 48, "sentence.2.linear."),
        SentenceStep("normalize", 48),
    )
    assert (facts.max_length, facts.dimension, facts.include_prompt) == (MAX_LENGTH, 48, True)
    plain = Path(shutil.copytree(sentences(GATED), tmp_path / "plain"))
    (plain / "modules.json").unlink()
    with pytest.raises(UserError, match=r"is not a bundle of .*sentence: bundle"):
        verify(folder, plain)
    model = BundleModel(folder, Manifest.read(folder), load(folder).step_model)
    with pytest.raises(UserError, match=r"pass \[text\]"):
        model.embed("a")


OLD_CLIENT = """
import json, sys
from sentence_transformers import SentenceTransformer
request = json.load(sys.stdin)
model = SentenceTransformer(sys.argv[1], backend="onnx", model_kwargs={"provider": "CPUExecutionProvider"})
print(json.dumps(model.encode(request["texts"]).tolist()))
"""


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_layout_for_optimum_is_a_folder_of_the_library(
    sentences: Sentences, tmp_path: Path, precision: str
) -> None:
    """Its own loaders read the modules; the encoder's graph gives the hidden states that they pool."""
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling

    out = export(sentences(GATED), precision, tmp_path / "b", layout="optimum", no_verify=False)
    model = load(out)
    layout = model.manifest.layout
    assert layout is not None
    assert layout.parity is not None
    assert layout.parity.errors["encoder"] <= layout.parity.limit
    kinds = [module["type"].rpartition(".")[2] for module in json.loads((out / "modules.json").read_text())]
    assert kinds == ["Transformer", "Pooling", "Dense", "Normalize"]
    ids, mask = model.tokenizer.encode(list(TEXTS[:3]))
    features: dict[str, Any] = {"attention_mask": torch.from_numpy(mask)}
    features["token_embeddings"] = torch.from_numpy(model.encode_ids(ids, mask))
    for kind, path in zip((Pooling, Dense, Normalize), ("1_Pooling", "2_Dense", "3_Normalize"), strict=True):
        features = kind.load(str(out), subfolder=path)(features)
    np.testing.assert_allclose(features["sentence_embedding"].detach().numpy(), model.embed(TEXTS[:3]), atol=1e-6)
    source = open_checkpoint(str(sentences(GATED)))
    assert source.sentence is not None
    assert read_modules(out, "b", source.architecture.d_model).facts == source.sentence.facts  # type: ignore[union-attr]


@pytest.mark.peer
def test_sentence_transformers_opens_the_folder_with_its_onnx_backend(sentences: Sentences, tmp_path: Path) -> None:
    python = os.environ.get("T5EDGE_PEER_PYTHON")
    if python is None:
        pytest.skip("T5EDGE_PEER_PYTHON is not set; point it at the peers' python (see benchmarks/README.md)")
    out = export(sentences(GATED), "int8", tmp_path / "b", layout="optimum")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, "-c", OLD_CLIENT, str(out)],
        input=json.dumps({"texts": TEXTS}),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = np.array(json.loads(done.stdout.splitlines()[-1]))
    np.testing.assert_allclose(found, load(out).embed(TEXTS), atol=2e-2)  # int8 runs in another form there
    assert cosines(found, load(out).embed(TEXTS)).min() > 0.999

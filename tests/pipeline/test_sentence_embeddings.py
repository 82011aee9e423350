"""Models of sentence-transformers over T5: recognized, exported with their pooling, run; against the library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from support.encoders import GATED, PER_LAYER_BIAS, RELU
from support.exports import fix_hashes, stored_tensor
from support.gpus import SetGpus
from support.host_device import pretend_gpu
from support.sentences import MAX_LENGTH, TEXTS, dense, reference, save_sentence_model
from support.shared import once, shared_folder
from t5edge import pipeline
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.precision import PRECISIONS
from t5edge.bundle.records import SentenceStep
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
Sentences = Callable[..., Path]


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Sentences:
    """A sentence-t5-like model of a tiny structure; with a precision its unverified bundle. To be read only."""
    root = shared_folder(tmp_path_factory, "sentences")

    def made(name: str = GATED, precision: str | None = None) -> Path:
        folder = once(root / name, lambda path: save_sentence_model(path, name))
        if precision is None:
            return folder
        return once(root / f"{name}-{precision}", lambda out: export(folder, precision, out))

    return made


def export(source: Path, precision: str, out: Path, **options: Any) -> Path:
    settings = {"no_verify": True, "target": ("onnxruntime",), **options}
    return pipeline.export(str(source), precision, out=out, **settings).folder


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
    report = verify(sentences(GATED, "int8"), blockwise=True)
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


def test_older_folders_are_read_alike(sentences: Sentences, tmp_path: Path) -> None:
    """As versions before 6 wrote them: other names and settings, weights by ``torch.save``, the encoder in a folder."""
    folder = Path(shutil.copytree(sentences(RELU), tmp_path / "old"))
    modules = json.loads((folder / "modules.json").read_text())
    for module, kind in zip(modules, ("Transformer", "Pooling", "Dense", "Normalize"), strict=True):
        module["type"] = f"sentence_transformers.models.{kind}"
    modules[0]["path"] = "0_Transformer"
    (folder / "0_Transformer").mkdir()
    for path in [path for path in folder.iterdir() if path.is_file() and "modules" not in path.name]:
        path.rename(folder / "0_Transformer" / path.name)
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "0_Transformer" / "sentence_bert_config.json").write_text('{"max_seq_length": 20, "do_lower_case": true}')
    pooling = {"word_embedding_dimension": 72, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "3_Normalize" / "config.json").unlink()
    torch.save(load_file(folder / "2_Dense" / "model.safetensors"), folder / "2_Dense" / "pytorch_model.bin")
    (folder / "2_Dense" / "model.safetensors").unlink()
    model = load(export(folder, "fp32", tmp_path / "b"))
    np.testing.assert_allclose(model.embed(TEXTS), reference(folder).encode(list(TEXTS)), atol=1e-6)
    assert verify(model.folder, checks=[check for check in CHECKS if check.name in ("weights", "2 encoder")]).passed


def changed(folder: Path, name: str, **settings: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize(
    ("file", "settings", "said"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "attention"}, "pools by attention; known are cls, max, mean"),
        ("1_Pooling/config.json", {"embedding_dimension": 8}, "pools vectors of 8, its encoder gives 72"),
        (
            "2_Dense/config.json",
            {"activation_function": "torch.nn.modules.activation.Mish"},
            "known are Identity, Tanh",
        ),
        ("2_Dense/config.json", {"activation_function": "mine.ReLU"}, "with the activation mine.ReLU"),
        ("2_Dense/config.json", {"use_residual": True}, "a Dense with a residual"),
        ("2_Dense/config.json", {"out_features": 47}, r"a Dense of .*48, 72.*expected .*47, 72"),
        ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "a Dense of token_embeddings"),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": "q"},
            "prompt 'q' before every text and has no such",
        ),
    ],
)
def test_what_is_not_exact_is_refused_by_name(
    sentences: Sentences, tmp_path: Path, file: str, settings: dict[str, Any], said: str
) -> None:
    folder = Path(shutil.copytree(sentences(RELU), tmp_path / "model"))
    changed(folder, file, **settings)
    with pytest.raises(UserError, match=said) as caught:
        open_checkpoint(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "place", "said"),
    [
        ("sentence_transformers.models.LayerNorm", 3, "a module sentence_transformers.models.LayerNorm, which is not"),
        ("sentence_transformers.models.CNN", 1, "has no Pooling behind its transformer"),
        ("sentence_transformers.models.WordEmbeddings", 0, "does not begin with a Transformer"),
    ],
)
def test_other_modules_are_refused_by_name(
    sentences: Sentences, tmp_path: Path, kind: str, place: int, said: str
) -> None:
    folder = Path(shutil.copytree(sentences(RELU), tmp_path / "model"))
    modules = json.loads((folder / "modules.json").read_text())
    modules[place]["type"] = kind
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match=said):
        open_checkpoint(str(folder))
    modules[1]["path"] = "../elsewhere"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match=r"modules.json cannot be read .*leaves the folder"):
        open_checkpoint(str(folder))


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


def test_a_whole_checkpoint_is_cut_or_generates_on_request(sentences: Sentences, tmp_path: Path) -> None:
    """Some folders hold the decoder too: sentence-transformers leaves it out."""
    from t5edge.exporter.checkpoint.random_weights import RandomStore

    folder = Path(shutil.copytree(sentences(RELU), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    changed(folder, "config.json", num_decoder_layers=2, architectures=["T5ForConditionalGeneration"])
    whole = replace(open_checkpoint(str(folder)).architecture, decoder_layers=2)
    store = RandomStore(whole, 0)
    save_file({name: store.read(name) for name in whole.tensor_shapes()}, folder / "model.safetensors")
    assert config["model_type"] == "t5"
    assert open_checkpoint(str(folder)).architecture.encoder_alone
    assert open_checkpoint(str(folder)).sentence is not None
    full = open_checkpoint(str(folder), task="generate")
    assert (full.architecture.decoder_layers, full.sentence) == (2, None)


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

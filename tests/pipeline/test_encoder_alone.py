"""An encoder alone: opened by its tensors' names, exported, proven, and run; against transformers' encoder models."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from support.encoders import GATED, PER_LAYER_BIAS, RELU, Bundles, encoder_model, example, hidden_states
from support.exports import Exports
from support.tiny_models import tiny_models
from t5edge import pipeline
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.parity_report import PASS
from t5edge.bundle.precision import PRECISIONS
from t5edge.cli import main
from t5edge.errors import GateError, UserError
from t5edge.exporter.checkpoint.open import open_checkpoint
from t5edge.exporter.family.variants import DEMO_FOLDER
from t5edge.parity.ladder import CHECKS, verify
from t5edge.parity.measures import relative_error
from t5edge.runtime.model import BundleModel, load

ALL = (RELU, GATED, PER_LAYER_BIAS)
OF_DECODER = {"3 logits", "4 cache", "7 generation", "8 task"}


def error_of(model: BundleModel, expected: np.ndarray, ids: np.ndarray, mask: np.ndarray) -> float:
    seen = mask.astype(bool)
    return relative_error(model.encode_ids(ids, mask)[seen], expected[seen])


@pytest.mark.parametrize("name", ALL)
def test_hidden_states_are_transformers_own(encoders: Bundles, name: str) -> None:
    """In float32 to 1e-5, with and without a mask; in float16 within what PyTorch's bfloat16 loses."""
    reference, exact, narrow = encoder_model(name), load(encoders(name, "fp32")), load(encoders(name, "fp16"))
    ids, mask = example(exact.vocab_size)
    expected = hidden_states(reference, ids, mask)
    assert error_of(exact, expected, ids, mask) < 1e-5
    unmasked = exact.encode_ids(ids)
    assert unmasked.dtype == narrow.encode_ids(ids).dtype == np.float32
    assert relative_error(unmasked, hidden_states(reference, ids, None)) < 1e-5
    own = hidden_states(copy.deepcopy(reference).to(torch.bfloat16), ids, mask)
    assert error_of(narrow, expected, ids, mask) < relative_error(own[mask == 1], expected[mask == 1])


@pytest.mark.parametrize("name", ALL)
def test_the_graph_and_the_weights_have_nothing_of_a_decoder(encoders: Bundles, name: str) -> None:
    folder = encoders(name, "fp32")
    manifest = Manifest.read(folder)
    assert manifest.task == "encode"
    assert (manifest.architecture.decoder_layers, manifest.architecture.per_layer_bias) == (0, name == PER_LAYER_BIAS)
    assert list(manifest.ports) == ["encoder"]
    assert [path.name for path in folder.glob("*.onnx")] == ["encoder.onnx"]
    graph = onnx.load(folder / "encoder.onnx", load_external_data=False).graph
    assert [value.name for value in graph.input] == ["input_ids", "attention_mask"]
    assert [value.name for value in graph.output] == ["last_hidden_state"]
    stored = load_file(folder / "weights.safetensors")
    assert stored
    assert not any("decoder" in key or "lm_head" in key for key in stored)
    assert manifest.costs is not None
    assert manifest.costs["encoder"].attention_width == manifest.architecture.inner_dim


def test_the_ladder_proves_it_and_leaves_out_what_there_is_not(encoders: Bundles, tmp_path: Path) -> None:
    bundle = pipeline.export(str(encoders(PER_LAYER_BIAS)), "fp16", out=tmp_path / "b", target=("onnxruntime",))
    assert bundle.passed
    report = json.loads((bundle.folder / "parity.json").read_text())
    verdicts = {entry["name"]: entry["verdict"] for entry in report["rungs"]}
    assert set(verdicts) == {check.name for check in CHECKS}
    assert {verdicts[name] for name in OF_DECODER} == {"not applicable: the bundle is an encoder alone"}
    for name in ("weights", "graphs", "1 operators", "2 encoder", "3 range", "5 padding", "6 lengths", "9 text"):
        assert verdicts[name] in (PASS, "not applicable: the checkpoint has no tokenizer")
    pooled = [entry for entry in report["rungs"] if "cosine of pooled" in entry["measure"]]
    assert {entry["name"] for entry in pooled} == {"2 encoder", "3 texts", "3 range"}
    tokens = [entry for entry in report["rungs"] if entry["measure"] == "1 - cosine of encoder output, worst token"]
    assert {entry["name"] for entry in tokens} == {"2 encoder", "3 range"}
    assert all(0 < entry["value"] <= entry["limit"] < 1e-3 for entry in pooled)


@pytest.mark.slow
@pytest.mark.parametrize("precision", [row.name for row in PRECISIONS])
@pytest.mark.parametrize("name", [tiny.name for tiny in tiny_models()])
def test_every_structure_passes_in_every_precision(
    encoders: Bundles, tmp_path: Path, name: str, precision: str
) -> None:
    bundle = pipeline.export(str(encoders(name)), precision, out=tmp_path / "b", target=("onnxruntime",))
    assert bundle.passed


@pytest.mark.slow
def test_layer_by_layer_it_passes_too(encoders: Bundles) -> None:
    report = verify(encoders(PER_LAYER_BIAS, "fp16"), blockwise=True)
    assert not report.failures
    names = {result.name for result in report.results if result.verdict == PASS}
    assert {"encoder stem", "encoder block 2", "encoder head"} <= names
    assert not any(name.startswith("decoder") for name in names)


def rounded(folder: Path) -> BundleModel:
    """The bundle with every tensor rounded to float16, as hardware does."""
    from t5edge.runtime.onnxruntime.emulation import open_rounded
    from t5edge.runtime.onnxruntime.sessions import session_options

    manifest = Manifest.read(folder)
    return BundleModel(folder, manifest, open_rounded(folder, manifest, session_options(None)))


def test_a_residual_beyond_float16_is_right_with_the_rescale_and_broken_without(
    encoders: Bundles, tmp_path: Path
) -> None:
    reference, folder = encoder_model(GATED, hot=True), encoders(GATED, "fp16", hot=True)
    stack = Manifest.read(folder).rescale.encoder
    assert (stack.largest_residual or 0.0) > 65504
    assert stack.k > 0
    ids, mask = example(reference.config.vocab_size)
    seen = mask == 1
    expected = hidden_states(reference, ids, mask)[seen]
    limit = 2 * relative_error(hidden_states(copy.deepcopy(reference).to(torch.bfloat16), ids, mask)[seen], expected)
    assert limit < 0.05
    for model in (load(folder), rounded(folder)):
        assert relative_error(model.encode_ids(ids, mask)[seen], expected) < limit
    options = {"no_rescale": True, "no_verify": True, "target": ("onnxruntime",)}
    plain = pipeline.export(str(encoders(GATED, hot=True)), "fp16", out=tmp_path / "plain", **options)
    assert not relative_error(rounded(plain.folder).encode_ids(ids, mask)[seen], expected) < 1


@pytest.mark.slow
def test_the_ladder_fails_a_residual_beyond_float16_without_the_rescale(encoders: Bundles, tmp_path: Path) -> None:
    source = str(encoders(GATED, hot=True))
    assert pipeline.export(source, "fp16", out=tmp_path / "right", target=("onnxruntime",)).passed
    with pytest.raises(GateError, match="kept for study"):
        pipeline.export(source, "fp16", out=tmp_path / "b", target=("onnxruntime",), no_rescale=True)
    broken = json.loads((tmp_path / "b.failed" / "parity.json").read_text())["rungs"]
    failed = {entry["measure"] for entry in broken if entry["verdict"] == "fail"}
    assert "NaN or infinity in the encoder output" in failed


@pytest.mark.parametrize("name", [RELU, GATED])
def test_the_encoder_of_a_full_checkpoint_gives_the_same_hidden_states(
    exports: Exports, tmp_path: Path, name: str
) -> None:
    full = load(exports.bundle(name))
    options = {"task": "encode", "no_verify": True, "target": ("onnxruntime",)}
    bundle = pipeline.export(str(exports.root / name), "fp32", out=tmp_path / "b", **options)
    alone = load(bundle.folder)
    assert (alone.manifest.task, full.manifest.task) == ("encode", "generate")
    ids, mask = example(full.vocab_size)
    assert np.array_equal(alone.encode_ids(ids, mask), full.encode_ids(ids, mask))
    own, whole = ((folder / "weights.safetensors").stat().st_size for folder in (bundle.folder, full.folder))
    assert own < 0.7 * whole
    assert verify(bundle.folder, checks=[check for check in CHECKS if check.name in ("weights", "2 encoder")]).passed


def test_texts_are_encoded_with_the_checkpoint_s_tokenizer(tmp_path: Path) -> None:
    options = {"task": "encode", "no_verify": True, "target": ("onnxruntime",)}
    model = load(pipeline.export("t5-demo", "fp32", out=tmp_path / "b", **options).folder)
    texts = ["spell 1984", "add 1 and 2, and then 3", "a"]
    found = model.encode(texts)
    assert [len(states) for states in found] == [len(row) for row in model.tokenizer.ids(texts)]
    for text, states in zip(texts, found, strict=True):
        (alone,) = model.encode([text])
        assert relative_error(states, alone) < 1e-5
    with pytest.raises(UserError, match=r"pass \[text\]"):
        model.encode("spell 1984")


def save_pipeline(folder: Path) -> Path:
    """A diffusers pipeline: a sharded encoder, its tokenizer in a folder beside it."""
    vocab_size = open_checkpoint("t5-demo").architecture.vocab_size
    model = encoder_model(RELU, vocab_size=vocab_size)
    model.save_pretrained(folder / "text_encoder_2", max_shard_size="100KB")
    assert len(list((folder / "text_encoder_2").glob("*.safetensors"))) > 1
    (folder / "model_index.json").write_text("{}")
    (folder / "text_encoder").mkdir()
    (folder / "text_encoder" / "config.json").write_text(json.dumps({"model_type": "clip_text_model"}))
    (folder / "tokenizer_2").mkdir()
    shutil.copy(DEMO_FOLDER / "tokenizer.json", folder / "tokenizer_2")
    return folder


def test_a_part_of_a_diffusers_pipeline(tmp_path: Path) -> None:
    source = save_pipeline(tmp_path / "flux")
    options = {"subfolder": "text_encoder_2", "no_verify": True, "target": ("onnxruntime",)}
    model = load(pipeline.export(str(source), "fp32", out=tmp_path / "b", **options).folder)
    assert (model.manifest.variant, model.manifest.subfolder) == (str(source), "text_encoder_2")
    ids = model.tokenizer.ids(["spell 1984"])
    expected = hidden_states(encoder_model(RELU, vocab_size=model.vocab_size), np.array(ids), None)
    assert relative_error(model.encode(["spell 1984"])[0], expected[0]) < 1e-5
    assert verify(model.folder, checks=[check for check in CHECKS if check.name in ("weights", "9 text")]).passed
    for subfolder, said in {
        "text_encoder": "model_type 'clip_text_model' is not of the T5 family",
        "text_encoder_3": "has no folder 'text_encoder_3'",
        None: r"name one of its text encoders \(text_encoder, text_encoder_2\) with --subfolder",
    }.items():
        with pytest.raises(UserError, match=said):
            open_checkpoint(str(source), subfolder=subfolder)
    with pytest.raises(UserError, match="a folder inside the variant is needed"):
        pipeline.export(str(source), subfolder="../elsewhere")


def test_what_needs_a_decoder_is_refused_in_one_line(encoders: Bundles, capsys: pytest.CaptureFixture[str]) -> None:
    folder = encoders(RELU, "fp32")
    model, ids = load(folder), np.ones((1, 3), np.int64)
    for call in (
        lambda: model.generate(ids),
        lambda: model.logits(ids, None, ids),
        lambda: model.logits_uncached(ids, None, ids),
        lambda: model.generate_text(["a"]),
    ):
        with pytest.raises(UserError, match=r"is an encoder alone and has no .*; call encode\(\)"):
            call()
    capsys.readouterr()
    for command in (["generate", str(folder), "a"], ["bench", str(folder), "--quick"]):
        assert main(command) == 2
        said = capsys.readouterr().err.strip()
        assert "is an encoder alone and has no" in said
        assert "\n" not in said
    assert main(["inspect", str(folder)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "an encoder alone of 3 layers" in shown
    assert "rescale: encoder k=0; parity" in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "generate"}, "is an encoder without a decoder and generates nothing"),
        ({"precision": "int8", "count_ties": True}, "--count-ties is about tokens, which it has none of"),
        ({"task": "translate"}, "choose one of generate, encode"),
    ],
)
def test_options_of_generating_models_are_refused(
    encoders: Bundles, tmp_path: Path, options: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        pipeline.export(str(encoders(RELU)), **{"out": tmp_path / "b", "target": ("onnxruntime",), **options})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_tensors_decide_and_not_the_config(encoders: Bundles, tmp_path: Path) -> None:
    """Under either name of the table, with a config that claims a decoder and a separate output layer."""
    state = load_file(encoders(GATED) / "model.safetensors")
    config = json.loads((encoders(GATED) / "config.json").read_text())
    lying = {**config, "architectures": ["T5ForConditionalGeneration"], "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps({**lying, "num_decoder_layers": 7}))
    table = state.pop("shared.weight") if "shared.weight" in state else state.pop("encoder.embed_tokens.weight")
    for name in ("shared.weight", "encoder.embed_tokens.weight"):
        save_file({**state, name: table}, tmp_path / "model.safetensors", metadata={"format": "pt"})
        checkpoint = open_checkpoint(str(tmp_path))
        assert checkpoint.architecture.encoder_alone
        assert torch.equal(checkpoint.read("shared.weight"), table)
    save_file({**state, name: table, "lm_head.weight": table.clone()}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"an encoder and lm_head\.weight without a decoder"):
        open_checkpoint(str(tmp_path))


def test_a_manifest_s_task_is_that_of_its_architecture(encoders: Bundles) -> None:
    data = Manifest.read(encoders(RELU, "fp32")).to_dict()
    with pytest.raises(UserError, match=r"ports\.decoder is missing; task is generate with 0 decoder layers"):
        Manifest.from_dict({**data, "task": "generate"})

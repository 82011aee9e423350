"""Heads against transformers: of tokens, spans and whole texts, of T5, mT5 and UMT5."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from support.encoders import example
from support.shared import once, shared_folder
from support.tiny_models import find_tiny_model
from t5edge import pipeline
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.parity_report import PASS
from t5edge.cli import main
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.open import open_checkpoint
from t5edge.options import ExportOptions
from t5edge.parity.measures import relative_error
from t5edge.runtime.model import load

FAMILIES = {"T5": "t5-tiny", "MT5": "mt5-tiny", "UMT5": "umt5-tiny"}
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
Bundles = Callable[..., Path]


def save_head(family: str, head: str, folder: Path, **settings: Any) -> Any:
    """A tiny model with a head, random weights, saved as transformers saves it."""
    sizes = {**find_tiny_model(FAMILIES[family]).config, **settings}
    # by its default attention the decoder of UMT5 in transformers 5.17 sees later tokens
    config = getattr(transformers, f"{family}Config")(**sizes, attn_implementation="eager")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}For{head}")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("classifier.", "qa_outputs.", "classification_head.")):
                parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(2))
    model.save_pretrained(folder)
    return model.eval()


def named(names: tuple[str, ...]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: place for place, name in enumerate(names)}}


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """A verified bundle of a classifier of tokens; without a precision the checkpoint."""
    root = shared_folder(tmp_path_factory, "heads")

    def bundle(family: str, precision: str | None = None) -> Path:
        folder = once(root / family, lambda out: save_head(family, "TokenClassification", out, **named(LABELS)))
        if precision is None:
            return folder

        def export(out: Path) -> None:
            assert pipeline.export(str(folder), precision, out=out, target=("onnxruntime",)).passed

        return once(root / f"{family}-{precision}", export)

    return bundle


def expected(folder: Path, family: str, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Logits of transformers' own class, float32 [batch, source, labels]."""
    model = getattr(transformers, f"{family}ForTokenClassification").from_pretrained(folder).eval()
    with torch.inference_mode():
        found: np.ndarray = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.numpy()
    return found


def assert_near(folder: Path, bundle: Path, family: str, limit: float) -> None:
    model = load(bundle)
    ids, mask = example(model.vocab_size)
    exact, seen = expected(folder, family, ids, mask), mask == 1
    found = model.classify_ids(ids, mask)
    assert (found.dtype, found.shape) == (np.float32, (*ids.shape, len(LABELS)))
    assert relative_error(found[seen], exact[seen]) < limit


def test_logits_of_tokens_are_transformers_own(bundles: Bundles) -> None:
    """The ladder ran with the head, too."""
    folder, bundle = bundles("T5"), bundles("T5", "fp32")
    assert_near(folder, bundle, "T5", 1e-5)
    manifest = Manifest.read(bundle)
    assert (manifest.task, manifest.labels, manifest.architecture.labels) == ("encode", LABELS, 5)
    assert [port.name for port in manifest.ports["encoder"].outputs] == ["last_hidden_state", "logits"]
    report = json.loads((bundle / "parity.json").read_text())["rungs"]
    measures = {entry["measure"]: entry["verdict"] for entry in report}
    wanted = [measure for measure in measures if "label logits" in measure]
    assert len(wanted) >= 2
    assert {measures[measure] for measure in wanted} == {PASS}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["MT5", "UMT5"])
def test_so_they_are_of_other_families(bundles: Bundles, family: str) -> None:
    assert_near(bundles(family), bundles(family, "fp32"), family, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "int8-weight", "int4-weight"])
def test_every_precision_passes(bundles: Bundles, precision: str) -> None:
    assert_near(bundles("T5"), bundles("T5", precision), "T5", 0.2)


def test_labels_without_names_are_transformers_two(tmp_path: Path) -> None:
    save_head("T5", "TokenClassification", tmp_path)
    assert open_checkpoint(str(tmp_path)).architecture.labels == 2
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "id2label": {"0": "a", "2": "b"}}))
    with pytest.raises(UserError, match="id2label names no labels 0, 1, 2"):
        open_checkpoint(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({**config, "id2label": {"0": "a"}}))
    with pytest.raises(UserError, match=r"classifier\.weight is \[2, 72\] instead of \[1, 72\]"):
        open_checkpoint(str(tmp_path))


def source(vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask of three rows, each of which ends with the end token; the last has one before, too."""
    ids, mask = example(vocab_size)
    for row, length in enumerate(mask.sum(axis=1)):
        ids[row, length - 1] = 1
    ids[0, 5] = ids[1, 3] = 1
    mask[2, :4], ids[2, :4] = 1, (1, 7, 9, 1)
    return ids, mask


def outputs(model: Any, ids: np.ndarray, mask: np.ndarray) -> Any:
    with torch.inference_mode():
        return model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))


@pytest.mark.parametrize(("family", "tied"), [("T5", True), ("UMT5", False)])
def test_spans_are_transformers_own(tmp_path: Path, family: str, tied: bool) -> None:
    reference = save_head(family, "QuestionAnswering", tmp_path / "model")
    options = {"target": ("onnxruntime",), "out": tmp_path / "b"}
    bundle = pipeline.export(str(tmp_path / "model"), "fp32", **options)
    assert bundle.passed
    model = load(bundle.folder)
    ids, mask = source(model.vocab_size)
    exact = outputs(reference, ids, mask)
    for found, wanted in zip(model.span_logits_ids(ids, mask), (exact.start_logits, exact.end_logits), strict=True):
        assert relative_error(found[mask == 1], wanted.numpy()[mask == 1]) < 1e-5
    assert [port.name for port in model.manifest.ports["encoder"].outputs][1:] == ["start_logits", "end_logits"]
    with pytest.raises(UserError, match="classifies nothing"):
        model.classify_ids(ids, mask)
    report = json.loads((bundle.folder / "parity.json").read_text())["rungs"]
    assert {entry["verdict"] for entry in report if "label logits" in entry["measure"]} == {PASS}


@pytest.mark.parametrize("family", [pytest.param("MT5", marks=pytest.mark.slow), "T5"])
def test_classes_of_texts_are_transformers_own(tmp_path: Path, family: str) -> None:
    reference = save_head(family, "SequenceClassification", tmp_path / "model", **named(LABELS))
    bundle = pipeline.export(str(tmp_path / "model"), "fp32", out=tmp_path / "b", target=("onnxruntime",))
    assert bundle.passed
    model = load(bundle.folder)
    ids, mask = source(model.vocab_size)
    found = model.classify_ids(ids, mask)
    assert (found.shape, model.manifest.labels) == ((3, len(LABELS)), LABELS)
    assert relative_error(found, outputs(reference, ids, mask).logits.numpy()) < 1e-5
    with pytest.raises(UserError, match="a text has no end token"):
        model.classify_ids([[5, 6]])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "int8-weight", "int4-weight"])
@pytest.mark.parametrize("head", ["QuestionAnswering", "SequenceClassification"])
def test_heads_on_a_decoder_pass_in_every_precision(tmp_path: Path, head: str, precision: str) -> None:
    """Where integers are stored, the decoder and the table that both stacks look up stay in float."""
    save_head("T5", head, tmp_path / "model")
    bundle = pipeline.export(str(tmp_path / "model"), precision, out=tmp_path / "b", target=("onnxruntime",))
    assert bundle.passed
    plan = bundle.manifest.quantization
    if plan is not None:
        floating = {site["name"] for site in plan["sites"] if site["kept"]}
        assert floating == {
            "embedding",
            *(site["name"] for site in plan["sites"] if site["name"].startswith("decoder")),
        }
        assert len(floating) < len(plan["sites"])
        assert main(["report", str(bundle.folder), "--out", str(tmp_path / "report.html")]) == 0


def test_a_decoder_below_a_head_is_rescaled_for_fp16(tmp_path: Path) -> None:
    """Values beyond float16's range in both stacks: with the rescale they fit, without it nothing is left."""
    reference = save_head("T5", "QuestionAnswering", tmp_path / "model")
    with torch.no_grad():
        for stack in (reference.encoder, reference.decoder):
            for block in stack.block:
                block.layer[-1].DenseReluDense.wi.weight *= 100
                block.layer[-1].DenseReluDense.wo.weight *= 3000
    reference.save_pretrained(tmp_path / "model")
    options = {"target": ("onnxruntime",), "no_verify": True}
    bundle = pipeline.export(str(tmp_path / "model"), "fp16", out=tmp_path / "b", **options)
    assert bundle.manifest.rescale.encoder.k > 0
    assert bundle.manifest.rescale.decoder.k > 0
    model = load(bundle.folder)
    ids, mask = source(model.vocab_size)
    exact = outputs(reference, ids, mask)
    for found, wanted in zip(model.span_logits_ids(ids, mask), (exact.start_logits, exact.end_logits), strict=True):
        assert relative_error(found[mask == 1], wanted.numpy()[mask == 1]) < 0.02
    plain = load(
        pipeline.export(str(tmp_path / "model"), "fp16", out=tmp_path / "c", no_rescale=True, **options).folder
    )
    assert not np.isfinite(plain.span_logits_ids(ids, mask)[0]).all()


def test_a_head_on_a_decoder_has_no_engines() -> None:
    with pytest.raises(UserError, match="which is not built for tensorrt-rtx; leave out --target"):
        pipeline.check_deep_head("x", ExportOptions(variant="x", target=("tensorrt-rtx",)))


def test_what_has_no_head_classifies_nothing(bundles: Bundles, exports: Any) -> None:
    plain = load(exports.bundle("t5-tiny"))
    with pytest.raises(UserError, match="classifies nothing; call encode"):
        plain.classify_ids([[5, 1]])
    with pytest.raises(UserError, match="finds no spans; call encode"):
        plain.span_logits_ids([[5, 1]])
    with pytest.raises(UserError, match=r"pass \[text\]"):
        load(bundles("T5", "fp32")).classify("a")

"""The check on all judged texts: which they are, that calibration never saw them, how many are judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from support.exports import GATED, Exports
from support.tiny_models import tiny_models
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.ports import Limits
from t5edge.calibration.texts import read_texts
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.open import open_checkpoint
from t5edge.exporter.checkpoint.tokenizer_files import tokenizer_json
from t5edge.exporter.family.variants import find_variant
from t5edge.exporter.reference.texts import (
    Encoder,
    Example,
    bundled_examples,
    judged_examples,
    read_examples,
    text_key,
)
from t5edge.parity.judged import _fill, judged
from t5edge.parity.judged_texts import LEAST, LEAST_ON_BUDGET, TASK_FILE, Judging, check_disjoint, judged_texts
from t5edge.parity.ladder import verify
from t5edge.parity.subject import Subject
from t5edge.pipeline import export
from t5edge.progress import Silent

DEMO = open_checkpoint("t5-demo")


def keys(examples: list[Example]) -> set[str]:
    return {text_key(example.source) for example in examples}


def test_no_bundled_text_is_calibrated_on() -> None:
    """Neither the bundled sentences nor t5-demo's own."""
    judged_keys = keys(judged_examples())
    own = DEMO.file(TASK_FILE)
    assert own is not None
    judged_keys |= keys(read_examples(own))
    assert len(judged_keys) == len(judged_examples()) + 200
    for demo in (False, True):
        assert not judged_keys & keys(bundled_examples(demo))


@pytest.mark.parametrize("vocabulary", ["words", "t5-demo", "bytes"])
def test_every_vocabulary_has_enough_positions(exports: Exports, vocabulary: str) -> None:
    """Without a tokenizer, with t5-demo's, and by ByT5's bytes (an id for each byte, and the end)."""
    checkpoint = DEMO if vocabulary == "t5-demo" else exports.checkpoint(GATED)
    examples, _ = judged_texts(checkpoint)
    encoder = Encoder(checkpoint.architecture, tokenizer_json(checkpoint))
    most = Limits().max_target_length
    lengths = [
        len(example.target.encode()) + 1 if vocabulary == "bytes" else len(encoder.ids(example.target))
        for example in examples
    ]
    assert sum(min(length, most) for length in lengths) >= LEAST


def test_the_bundled_texts_have_many_lengths_and_scripts() -> None:
    examples = judged_examples()
    words = [len(example.source.split()) for example in examples]
    assert min(words) == 1
    assert max(words) > 180
    together = " ".join(example.source + example.target for example in examples)
    for letter in ("ß", "é", "ñ", "ж", "天", "ع", "駅", "지", "ह", "{"):
        assert letter in together


def with_texts(subject: Subject, path: Path | None = None, budget: float | None = None) -> Subject:
    judging = Judging(None if path is None else str(path), budget)
    return replace(subject, opener=replace(subject.opener, judging=judging))


@pytest.fixture(scope="module")
def subject(exports: Exports) -> Subject:
    return exports.subject(GATED, "fp32", "3 texts")


def test_a_time_budget_ends_it_behind_the_least(subject: Subject) -> None:
    count, *others = judged(with_texts(subject, budget=0.0), "3 texts")
    assert (count.verdict, count.limit) == ("pass", LEAST_ON_BUDGET)
    assert count.value is not None
    assert LEAST_ON_BUDGET <= count.value < count.details["of_positions"]
    assert count.details["texts"] < count.details["of_texts"] == len(judged_examples())
    assert {result.verdict for result in others} == {"pass"}
    assert others[0].details["positions"] == count.value


def test_texts_without_targets_get_the_references_own(subject: Subject, exports: Exports, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("one two three\nfour five\n")
    count, *others = judged(with_texts(subject, path), "3 texts")
    assert count.verdict == "pass"
    assert count.measure == "positions judged (2 of 2 texts, mine.txt)"
    assert count.value is not None
    assert 4 < count.value <= 2 * 65
    assert {result.verdict for result in others} == {"pass"}
    streamed = exports.subject(GATED, "fp32", "3 texts", mapped=True)
    again, *_ = judged(with_texts(streamed, path), "3 texts")
    assert (again.value, again.verdict) == (count.value, "pass")


def test_targets_of_a_file_are_kept(subject: Subject, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"source": "one two", "target": "three four five"}))
    count, *_ = judged(with_texts(subject, path), "3 texts")
    assert (count.value, count.details["of_positions"]) == (4.0, 4)


def test_what_was_calibrated_on_is_refused(exports: Exports, tmp_path: Path) -> None:
    """At export by the texts, at verification by the keys that the manifest holds."""
    path = tmp_path / "mine.txt"
    path.write_text("something new\n  THE two pumps\tran all night \n")
    calibrated = read_texts(DEMO, (Example("the two pumps ran all night", "x"),), Limits(), Silent())
    with pytest.raises(UserError, match=r"1 of 2 texts .*\(mine.txt\) were calibrated on, such as '  THE two.*--texts"):
        check_disjoint(DEMO, str(path), calibrated.keys)
    check_disjoint(DEMO, None, calibrated.keys)
    folder = exports.bundle(GATED, "int8-weight")
    known = (Manifest.read(folder).quantization or {})["text_keys"]
    assert set(known) == keys(bundled_examples())
    path.write_text(bundled_examples()[0].source)
    with pytest.raises(UserError, match="were calibrated on"):
        verify(folder, texts=path)
    with pytest.raises(UserError, match="were calibrated on"):
        exports.export(str(exports.root / GATED), "int8-weight", tmp_path / "out", texts=path)


def test_a_short_heldout_file_is_topped_up(exports: Exports, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    exports.checkpoint(GATED)
    folder.mkdir()
    for file in (exports.root / GATED).iterdir():
        (folder / file.name).symlink_to(file)
    (folder / TASK_FILE).write_text(json.dumps({"source": "a", "target": "b"}))
    examples, origin = judged_texts(open_checkpoint(str(folder)))
    assert (len(examples), origin) == (1 + len(judged_examples()), f"{TASK_FILE} and bundled texts")


PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int8-weight", "int4-weight")


@pytest.mark.usefixtures("shipped_judging")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_by_default_two_thousand_positions_are_judged(exports: Exports, precision: str) -> None:
    report = exports.verify(exports.bundle(GATED, precision), GATED, "3 texts")
    assert report.passed, [result.describe() for result in report.failures]
    count = report.results[0]
    assert count.limit == LEAST == 2000
    assert count.value == count.details["of_positions"] >= 2000


@pytest.mark.slow
@pytest.mark.usefixtures("shipped_judging")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_t5_demo_passes_every_check_in_every_precision(tmp_path: Path, precision: str) -> None:
    bundle = export("t5-demo", precision, out=tmp_path / "demo", target=("onnxruntime",))
    assert bundle.passed
    report = bundle.manifest.parity
    assert report is not None
    assert not [result for result in report.results if result.verdict.startswith("not applicable: the checkpoint")]


@pytest.mark.slow
@pytest.mark.usefixtures("shipped_judging")
@pytest.mark.parametrize("tiny", [tiny.name for tiny in tiny_models()])
@pytest.mark.parametrize("precision", ["int8", "int8-weight", "int4-weight"])
def test_every_structure_holds_the_limits_of_the_quantized_precisions(
    exports: Exports, tmp_path: Path, tiny: str, precision: str
) -> None:
    exports.checkpoint(tiny)
    assert export(str(exports.root / tiny), precision, out=tmp_path / "tiny", target=("onnxruntime",)).passed


def test_a_deep_model_is_judged_in_smaller_batches() -> None:
    """All layers' keys and values of a batch are in memory at once."""
    row = ([5] * 128, [0] * 10)
    shallow, deep = (find_variant(f"t5-efficient-small-nl{layers}").architecture for layers in (6, 48))
    assert _fill(shallow, [row] * 31) < 1
    assert _fill(deep, [row] * 4) < 1 < _fill(deep, [row] * 8)

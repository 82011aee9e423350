"""A tokenizer or generation settings that are not the checkpoint's fail the ladder, whatever the hashes say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.bundles import Workshop
from support.exports import RELU, Exports, checks
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.parity_report import CheckResult
from t5edge.parity.ladder import open_subject
from t5edge.parity.subject import Opener, Subject
from t5edge.parity.tokenizer import text
from t5edge.progress import Silent
from t5edge.runtime.tokenizer import BundleTokenizer

Damage = Callable[[dict[str, Any]], None]


@pytest.fixture
def subject(demo: Workshop, tmp_path: Path) -> Subject:
    """The demo model, which brings a tokenizer, in a folder of its own."""
    folder = demo.fresh(tmp_path / "demo", "fp32")
    return open_subject(
        Opener(folder, Manifest.read(folder), "onnxruntime"), demo.checkpoint, Silent(), {}, checks("9")
    )


def failed(subject: Subject) -> list[CheckResult]:
    return [result for result in text(subject, "9 text") if result.verdict != "pass"]


def test_the_bundle_as_exported_passes(subject: Subject) -> None:
    assert failed(subject) == []
    assert len(list(text(subject, "9 text"))) == 6


def no_end_token(tokenizer: dict[str, Any]) -> None:
    tokenizer["post_processor"] = None


def lower_case(tokenizer: dict[str, Any]) -> None:
    tokenizer["normalizer"] = {"type": "Lowercase"}


def no_decoder(tokenizer: dict[str, Any]) -> None:
    tokenizer["decoder"] = None


def swapped_ids(tokenizer: dict[str, Any]) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, dict):
        one, other = sorted(vocabulary, key=vocabulary.__getitem__)[-2:]
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    else:
        vocabulary[-1], vocabulary[-2] = vocabulary[-2], vocabulary[-1]


def merges_lost(tokenizer: dict[str, Any]) -> None:
    del tokenizer["model"]["merges"][-12:]


def special_no_more(tokenizer: dict[str, Any]) -> None:
    for token in tokenizer["added_tokens"]:
        token["special"] = False


@pytest.mark.parametrize(
    ("damage", "measure"),
    [
        (no_end_token, "hard texts encoded"),
        (lower_case, "hard texts encoded"),
        (no_decoder, "hard texts decoded"),
        (swapped_ids, "tokens with another id"),
        (merges_lost, "parts of the tokenizer's model"),
        (special_no_more, "hard texts decoded"),
    ],
)
def test_a_wrong_tokenizer_is_found(subject: Subject, damage: Damage, measure: str) -> None:
    path = subject.opener.folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    damage(tokenizer)
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    assert any(result.measure.startswith(measure) for result in failed(subject))


def test_a_tokenizer_that_is_gone_is_found(subject: Subject) -> None:
    (subject.opener.folder / "tokenizer.json").unlink()
    (found,) = failed(subject)
    assert found.measure == "tokenizer.json is missing"


@pytest.mark.parametrize(
    ("key", "value"), [("eos_token_id", 2), ("decoder_start_token_id", 1), ("pad_token_id", 3), ("num_beams", 4)]
)
@pytest.mark.parametrize("place", ["manifest", "file"])
def test_wrong_generation_settings_are_found(subject: Subject, key: str, value: int, place: str) -> None:
    settings = {**subject.model.manifest.generation, key: value}
    if place == "manifest":
        subject.model.manifest = replace(subject.model.manifest, generation=settings)
    else:
        (subject.opener.folder / "generation_config.json").write_text(json.dumps(settings))
    (found,) = failed(subject)
    assert found.measure == f"generation settings unlike the checkpoint's: {key}"


def test_a_checkpoint_without_a_tokenizer_must_have_none(exports: Exports) -> None:
    subject = exports.subject(RELU, "fp32", "9")
    assert [result.verdict for result in text(subject, "9 text")] == [
        "pass",
        "pass",
        "not applicable: the checkpoint has no tokenizer",
    ]


def test_the_first_wrong_text_is_shown_in_ascii(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BundleTokenizer, "text", lambda self, row, skip: str(id(self)))
    (found,) = failed(subject)
    assert found.measure == "hard texts decoded unlike the checkpoint's, the first ''"
    assert found.value > 10


@pytest.mark.parametrize(("file", "count"), [("tokenizer.json", 1), ("generation_config.json", 1), ("config.json", 1)])
def test_a_file_that_cannot_be_read_fails(subject: Subject, file: str, count: int) -> None:
    (subject.opener.folder / file).write_text("{")
    found = failed(subject)
    assert len(found) == count
    assert "cannot be read" in found[0].measure

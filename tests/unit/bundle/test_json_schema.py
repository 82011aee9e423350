"""The schema that ships is the one that the reader's declarations make, and the two agree about what fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from support.json_schema import SHIPPED, manifest_schema
from support.manifests import engine_record, tiny_manifest
from support.schemas import check_written, schema_problems, validator
from t5edge.bundle.engine_record import EngineEntry, EngineRun
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.parity_report import ParityReport, at_most, failure, not_run
from t5edge.bundle.records import PromptFacts, SentenceFacts, SentenceStep
from t5edge.errors import UserError

RELEASED = Path(__file__).parents[2] / "bundles-0.1"
Change = Callable[[dict[str, Any]], object]


def whole() -> dict[str, Any]:
    """A manifest with engines, a report and a prompt."""
    report = ParityReport([at_most("3 logits", "KL", float("nan"), 0.2), failure("a", "NaN"), not_run("8 task", "no")])
    run = EngineRun("NVIDIA Test", "fail", tuple(report.results))
    entries = {
        "8.6": EngineEntry({"encoder": engine_record(weights={"shared.weight": (64, 128)})}, run),
        "8.9": EngineEntry({"encoder": engine_record()}, "not run: no GPU"),
    }
    prompt = PromptFacts("sum", "./sum", None, "PROMPT_TUNING", "0" * 64, 20, 32128)
    sentence = SentenceFacts(("mean",), (SentenceStep("dense", 8), SentenceStep("normalize", 8)), 8)
    other = {"of a later version": [1]}
    made = tiny_manifest(
        engines={"tensorrt-rtx": entries}, parity=report, prompts=(prompt,), sentence=sentence, other=other
    )
    return json.loads(json.dumps(made.to_dict()))


def test_the_shipped_file_is_up_to_date() -> None:
    """If not: ``cd tests; python -m support.json_schema``."""
    assert json.loads(SHIPPED.read_text(encoding="utf-8")) == manifest_schema()


def test_it_is_a_schema_and_ships() -> None:
    Draft202012Validator.check_schema(manifest_schema())
    assert resources.files("t5edge.bundle").joinpath(SHIPPED.name).is_file()


def test_every_attribute_of_the_manifest_is_described() -> None:
    entries = manifest_schema()["$defs"]["Manifest"]["properties"]
    assert {"format", "format_version", "ports", "files"} <= set(entries)
    assert "other" not in entries
    plain = {"format", "format_version", "architecture", "precision", "rescale", "engines", "tools"}
    assert {name for name, entry in entries.items() if "description" not in entry} <= plain


def test_what_is_written_fits() -> None:
    assert schema_problems(tiny_manifest().to_dict()) == []
    assert schema_problems(whole()) == []


@pytest.mark.parametrize("folder", sorted(RELEASED.glob("*/")), ids=lambda folder: folder.name)
def test_released_bundles_fit(folder: Path) -> None:
    check_written(folder)


def test_what_the_reader_takes_of_early_versions_fits() -> None:
    data = whole()
    del data["rows_share_cross"], data["tools"], data["parity"]
    data["session"] = {"session.force_spinning_stop": "1"}
    assert schema_problems(data) == []
    Manifest.from_dict(data)


def _set(*keys: Any, to: Any) -> Change:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = to

    return change


def _without(*keys: Any) -> Change:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        del data[keys[-1]]

    return change


WRONG = {
    "no ports": _without("ports"),
    "no decoder": _without("ports", "decoder"),
    "no files": _without("files"),
    "no size": _without("architecture", "d_kv"),
    "no sha256": _without("engines", "tensorrt-rtx", "8.9", "encoder", "sha256"),
    "no rungs": _without("parity", "rungs"),
    "another's": _set("format", to="zip"),
    "a later format": _set("format_version", to=2),
    "a size of 0": _set("architecture", "d_model", to=0),
    "a size as text": _set("architecture", "d_model", to="64"),
    "a flag as number": _set("rows_share_cross", to=1),
    "an unknown cache": _set("cache", to="ring"),
    "an unknown task": _set("task", to="classify"),
    "an encoder alone with decoder layers": _set("task", to="encode"),
    "a task without its decoder layers": _set("architecture", "decoder_layers", to=0),
    "a dtype of no graph": _set("ports", "encoder", "inputs", 0, "dtype", to="complex"),
    "an axis below 0": _set("ports", "encoder", "inputs", 0, "axes", 0, to=-1),
    "a file outside": _set("files", to={"../weights": {"bytes": 1, "sha256": "0"}}),
    "a file of an absolute path": _set("files", to={"/weights": {"bytes": 1, "sha256": "0"}}),
    "bytes below 0": _set("files", to={"weights": {"bytes": -1, "sha256": "0"}}),
    "a prompt without tokens": _set("prompts", 0, "tokens", to=0),
    "an unknown step": _set("sentence", "steps", 0, "kind", to="sparse"),
    "a profile of two shapes": _set("engines", "tensorrt-rtx", "8.6", "encoder", "profiles", to=[{"batch": [1, 1]}]),
    "a list for an object": _set("limits", to=[]),
    "null for a text": _set("variant", to=None),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused_by_both(change: Change) -> None:
    data = whole()
    change(data)
    assert schema_problems(data) != []
    with pytest.raises(UserError):
        Manifest.from_dict(data)


def test_further_keys_are_allowed() -> None:
    data = whole()
    data["architecture"]["of a later version"] = data["ports"]["decoder_later"] = None
    data["ports"]["decoder_later"] = data["ports"]["decoder"]
    assert validator().is_valid(data)


def test_the_specification_names_every_key() -> None:
    text = (Path(__file__).parents[3] / "docs" / "bundle-format.md").read_text(encoding="utf-8")
    entries = manifest_schema()["$defs"]["Manifest"]["properties"]
    assert [name for name in entries if f"`{name}`" not in text] == []

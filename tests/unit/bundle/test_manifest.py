"""The manifest: what is written is read back, what older bundles lack is filled in, what is wrong is named at once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.manifests import engine_record, tiny_manifest, write_manifest
from t5edge.bundle.costs import GatheredTable, GraphCosts
from t5edge.bundle.engine_record import EngineEntry, EngineRun
from t5edge.bundle.files import MANIFEST
from t5edge.bundle.manifest import FORMAT, Manifest
from t5edge.bundle.parity_report import ParityReport, at_most, failure, not_run
from t5edge.bundle.records import Layout, LayoutParity, RescaleFacts, Speed, StackRescale, Times
from t5edge.errors import UserError

REPORT = ParityReport([at_most("3 logits", "mean KL (nats)", 0.1, 0.2), not_run("8 task", "no task")], {"seconds": 1.5})


def full_manifest() -> Manifest:
    """Every optional part filled in."""
    run = EngineRun("NVIDIA Test 3090", "fail", (at_most("engine", "error", float("nan"), 1e-4), failure("a", "NaN")))
    entries = {
        "8.6": EngineEntry({"encoder": engine_record(weights={"shared.weight": (64, 128)})}, run),
        "8.9": EngineEntry({"encoder": engine_record(compute_capability="8.9")}, "not run: no GPU"),
    }
    return tiny_manifest(
        revision="abc",
        random_weights=3,
        content_key="key",
        rescale=RescaleFacts(StackRescale(2, (1, 0), 9e4, (3.5, 4.0), 2.9)),
        options={"target": ["onnxruntime"], "calibration": None},
        cache="both",
        session={"encoder": {"a": "1"}, "decoder": {"b": "2"}},
        rows_share_cross=True,
        engines={"tensorrt-rtx": entries},
        tools={"python": "3.11"},
        parity=REPORT,
        quantization={"kept": ["encoder.block.0.wo"], "sites": []},
        layout=Layout("optimum", LayoutParity({"merged": 1e-7}, 1e-5, passed=True)),
        speed=Speed(64, 16, None, Times(1.0, 2.0), Times(2.0, 3.0), 2.0, 1.5, 1.6),
        costs={"encoder": GraphCosts(3, {"MatMul": 2}, "source", 10, 6, {"source": 1}, 40, (GatheredTable(80, 8),))},
        other={"from a later version": {"kept": [1]}},
    )


@pytest.mark.parametrize("manifest", [tiny_manifest(), full_manifest()], ids=["least", "full"])
def test_what_is_written_is_read_back(tmp_path: Path, manifest: Manifest) -> None:
    manifest.write(tmp_path)
    written = (tmp_path / MANIFEST).read_bytes()
    found = Manifest.read(tmp_path)
    assert found.to_dict() == manifest.to_dict() == json.loads(written)
    if not manifest.engines:  # a NaN among their results equals nothing
        assert found == manifest
    found.write(tmp_path)
    assert (tmp_path / MANIFEST).read_bytes() == written


def test_older_bundles_mean_what_they_meant() -> None:
    """What later versions added: a cache that grows, no shared cross keys, the runtime's own session entries."""
    names = ("variant", "architecture", "precision", "generation", "limits", "ports", "files")
    data = tiny_manifest().to_dict()
    least = {"format": FORMAT, "format_version": 1, **{name: data[name] for name in names}}
    least["precision"] = {"name": "fp32", "compute": "float"}
    found = Manifest.from_dict(least)
    assert (found.cache, found.rows_share_cross, found.session) == ("concat", False, None)
    assert (found.layout, found.speed, found.quantization, found.parity, found.costs) == (None,) * 5
    assert (found.engines, found.tools, found.options, found.content_key) == ({}, {}, None, None)
    assert not found.precision.count_ties
    once = Manifest.from_dict({**least, "session": {"a": "1"}})
    assert once.session == {"encoder": {"a": "1"}, "decoder": {"a": "1"}}


def refusal(data: Any) -> str:
    with pytest.raises(UserError) as caught:
        Manifest.from_dict(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_missing_field_is_named_at_once() -> None:
    said = refusal({"format": FORMAT})
    for name in ("format_version", "variant", "architecture", "precision", "limits", "ports", "files", "generation"):
        assert f"{name} is missing" in said


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("format_version", "1", "format_version is '1', expected a whole number"),
        ("format_version", None, "format_version is null, expected a whole number"),
        ("format_version", True, "format_version is True, expected a whole number"),
        ("format_version", 0, "format_version is 0, expected at least 1"),
        ("format_version", 99, "has format version 99, this t5edge reads up to 1; upgrade t5edge"),
        ("variant", ["x"], r"variant is ['x'], expected a text"),
        ("random_weights", "7", "random_weights is '7', expected a whole number or null"),
        ("architecture", None, "architecture is null, expected an object"),
        ("architecture.d_model", 0, "architecture.d_model is 0, expected at least 1"),
        ("architecture.gated", 1, "architecture.gated is 1, expected true or false"),
        ("precision.compute", "float8", "precision.compute is 'float8', expected one of float, float16, bfloat16"),
        ("limits", {"max_batch": 1.5}, "limits.max_batch is 1.5, expected a whole number"),
        ("cache", "none", "cache is 'none', expected one of concat, in-place, both"),
        ("session", {"encoder": 3}, "session.encoder is 3, expected an object"),
        ("ports", {}, "ports.encoder is missing; ports.decoder is missing"),
        ("ports.decoder", {"inputs": []}, "ports.decoder.outputs is missing"),
        ("ports.encoder.inputs", [{"name": "a", "dtype": "text", "axes": [-1]}], "dtype is 'text', expected one of"),
        ("ports.encoder.inputs", [{"name": "a", "dtype": "float", "axes": [[]]}], "axes[0] is [], expected a text or"),
        ("engines", {"rtx": {"8.6": {"encoder": 1}}}, "engines.rtx.8.6.graphs.encoder is 1, expected an object"),
        ("files", {"a": {"bytes": -1, "sha256": 5}}, "files.a.bytes is -1, expected at least 0; files.a.sha256 is 5"),
        ("files", {"../a": {"bytes": 1, "sha256": ""}}, "'../a', expected a path inside the bundle"),
        ("files", {"a": {"bytes": 1, "sha256": "", "link": "/etc"}}, "files.a.link is '/etc', expected"),
        ("parity", {"rungs": [{"name": "a"}]}, "parity.results[0].measure is missing"),
        ("parity", "passed", "parity is 'passed', expected an object or null"),
        ("layout", {"name": None}, "layout.name is null, expected a text"),
    ],
)
def test_a_mistyped_field_is_named(place: str, value: Any, says: str) -> None:
    data = json.loads(json.dumps(tiny_manifest().to_dict()))
    *path, last = place.split(".")
    holder = data
    for name in path:
        holder = holder[name]
    holder[last] = value
    assert says in refusal(data)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"format": "t5edge-bundle", "format_version": 1, "generation": ' + "[" * 200 + "]" * 200 + "}", "too deeply"),
        ('{"format": "t5edge-bundle"', "cannot be read"),
        ("\xff", "is not a t5edge manifest|cannot be read"),
        ("", "cannot be read"),
        ('{"format": "t5edge-bundle", "variant": ' + "9" * 5000 + "}", "cannot be read"),
        ('"t5edge-bundle"', "is not a t5edge manifest"),
    ],
    ids=["deep", "deep in a part", "cut off", "no text", "empty", "long number", "a text"],
)
def test_what_is_no_manifest_is_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / MANIFEST).write_text(text, encoding="latin1")
    with pytest.raises(UserError, match=says) as caught:
        Manifest.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_files_are_described_and_known_hashes_are_taken(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"1234")
    (tmp_path / "half.partial").write_bytes(b"12")
    manifest = write_manifest(tmp_path)
    assert manifest.stored_bytes == 4
    assert list(manifest.files) == ["weights.safetensors"]
    assert manifest.with_files(tmp_path).files == manifest.files, "the manifest itself is not among them"
    assert manifest.with_files(tmp_path, {"weights.safetensors": "known"}).hashes == {"weights.safetensors": "known"}


def test_engines_are_put_in_beside_others() -> None:
    entry = EngineEntry({"encoder": engine_record()}, "not run: no GPU")
    manifest = tiny_manifest().with_engines("tensorrt-rtx", "8.6", entry).with_engines("tensorrt", "8.9", entry)
    again = manifest.with_engines("tensorrt-rtx", "8.9", replace(entry, run="not run: other"))
    assert {target: list(entries) for target, entries in again.engines.items()} == {
        "tensorrt-rtx": ["8.6", "8.9"],
        "tensorrt": ["8.9"],
    }
    assert again.engines["tensorrt-rtx"]["8.6"] == entry


def test_entries_are_reached_by_their_names_in_the_file() -> None:
    manifest = Manifest.read(Path(__file__).parents[2] / "bundles-0.1" / "byt5-int8")
    assert manifest["generation"] == manifest.generation
    assert manifest["rescale"] == manifest.to_dict()["rescale"]
    with pytest.raises(KeyError):
        manifest["no_such_entry"]

"""Kernels by the CPU's facts and by measurement: what is chosen, what runs, where it is remembered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.bundles import Workshop
from t5edge.bundle.manifest import Manifest
from t5edge.cli import main
from t5edge.errors import UserError
from t5edge.progress import Silent
from t5edge.runtime.model import load
from t5edge.runtime.onnxruntime import cpu, kernels
from t5edge.runtime.onnxruntime.cpu import open as open_onnxruntime
from t5edge.runtime.onnxruntime.cpu import tune_bundle
from t5edge.runtime.onnxruntime.kernels import FLOAT_INSIDE, KERNELS, RECORDED, WIDENED, candidates, choose, tuned
from t5edge.runtime.onnxruntime.threads import usual_threads

IDS = np.random.default_rng(0).integers(3, 180, (2, 20))
Speak = Callable[[bool], None]


@pytest.fixture
def mixed(monkeypatch: pytest.MonkeyPatch) -> Speak:
    """Let this CPU multiply int8 or not."""
    return lambda yes: monkeypatch.setattr(kernels, "multiplies_int8", lambda: yes)


def test_this_cpu_is_asked_through_its_kernels() -> None:
    assert isinstance(kernels.multiplies_int8(), bool)


@pytest.mark.parametrize("precision", ["int8-weight", "int4-weight"])
def test_an_encoder_is_widened_where_int8_has_no_instruction(demo: Workshop, precision: str, mixed: Speak) -> None:
    manifest = Manifest.read(demo.bundle(precision))
    mixed(True)
    assert choose(manifest, "encoder")[0] is RECORDED
    mixed(False)
    assert choose(manifest, "encoder")[0] is WIDENED
    assert choose(manifest, "decoder")[0] is RECORDED


def test_without_the_memory_weights_stay_as_they_are(
    demo: Workshop, mixed: Speak, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.read(demo.bundle("int8-weight"))
    mixed(False)
    monkeypatch.setattr(kernels, "MEMORY", 0.0)
    found, why = choose(manifest, "encoder")
    assert found is RECORDED
    assert "do not fit" in why
    assert WIDENED not in candidates(manifest, "encoder")


@pytest.mark.parametrize(("precision", "graphs"), [("fp32", ()), ("fp16", ()), ("int8", ("decoder",))])
def test_what_has_no_choice_runs_as_recorded(
    demo: Workshop, precision: str, graphs: tuple[str, ...], mixed: Speak
) -> None:
    mixed(False)
    manifest = Manifest.read(demo.bundle(precision))
    for graph in ("encoder", "decoder"):
        assert (len(candidates(manifest, graph)) > 1) == (graph in graphs)
        assert choose(manifest, graph)[0] is RECORDED


@pytest.mark.parametrize("precision", ["int8-weight", "int4-weight"])
def test_no_way_rounds_more_than_the_recorded_one(demo: Workshop, precision: str) -> None:
    """Against the float32 bundle: other kernels compute the same weights."""
    folder, mask = demo.bundle(precision), np.ones_like(IDS)
    manifest, exact = Manifest.read(folder), load(demo.bundle("fp32")).encode_ids(IDS)
    errors = {}
    for name, way in KERNELS.items():
        model = open_onnxruntime(folder, manifest, kernels={"encoder": way})
        errors[name] = np.abs(model.hidden_and_cross(IDS, mask)["last_hidden_state"] - exact).mean()
    assert errors[FLOAT_INSIDE.name] <= 1.01 * errors[RECORDED.name]
    assert errors[WIDENED.name] <= 1.01 * errors[RECORDED.name]
    assert errors[FLOAT_INSIDE.name] == pytest.approx(errors[WIDENED.name], rel=0.01)


def test_what_was_measured_is_remembered_and_taken(demo: Workshop, mixed: Speak) -> None:
    mixed(True)
    folder = demo.bundle("int8-weight")
    manifest = Manifest.read(folder)
    assert tuned(manifest) == {}
    found = tune_bundle(folder, manifest, Silent())
    assert {(timing.graph, timing.kernels) for timing in found.timings} == {
        ("encoder", RECORDED.name),
        ("encoder", FLOAT_INSIDE.name),
        ("encoder", WIDENED.name),
        ("decoder", RECORDED.name),
        ("decoder", FLOAT_INSIDE.name),
    }
    assert all(value > 0 for timing in found.timings for value in timing.milliseconds.values())
    kernels.keep_tuning(manifest, {"encoder": WIDENED.name, "decoder": RECORDED.name}, {})
    assert choose(manifest, "encoder") == (WIDENED, "measured on this CPU")
    assert choose(manifest, "encoder", measured=False)[0] is RECORDED
    kernels.keep_tuning(manifest, {"encoder": "something else"}, {})
    assert choose(manifest, "encoder")[0] is RECORDED


def test_auto_measures_once(demo: Workshop, caches: Path) -> None:
    folder = demo.bundle("int4-weight")
    load(folder, tune="known")
    assert not list(caches.rglob("tuning/*"))
    load(folder, tune="auto")
    (file,) = caches.rglob("tuning/*")
    stamp = file.stat().st_mtime_ns
    load(folder, tune="auto")
    assert file.stat().st_mtime_ns == stamp
    assert set(json.loads(file.read_text())["kernels"]) == {"encoder", "decoder"}
    with pytest.raises(UserError, match="choose one of known, auto, off"):
        load(folder, tune="fast")


def test_the_command_shows_what_it_measured(demo: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(demo.bundle("int8-weight")), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert set(data["chosen"]) == {"encoder", "decoder"}
    assert main(["tune", str(demo.bundle("fp32")), "--threads", "1"]) == 0
    assert "one way only" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_threads_are_measured_of_every_precision(
    demo: Workshop, precision: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cpu, "thread_candidates", lambda: (2, 1))
    folder = str(demo.bundle(precision))
    assert main(["tune", folder, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    found = {(row["graph"], row["threads"]) for row in data["timings"]}
    assert found == {(graph, count) for graph in ("encoder", "decoder") for count in (1, 2)}
    assert set(data["threads"].values()) <= {1}
    assert main(["tune", folder]) == 0
    assert capsys.readouterr().out.count("yes") == 2


def test_sessions_take_the_threads_that_were_found(demo: Workshop) -> None:
    folder = demo.bundle("fp32")
    manifest = Manifest.read(folder)
    kernels.keep_tuning(manifest, {"encoder": RECORDED.name, "decoder": RECORDED.name}, {}, {"encoder": 3})
    found = {}
    for name, settings in {"found": {}, "given": {"threads": 2}, "off": {"tune": "off"}}.items():
        model = open_onnxruntime(folder, manifest, **settings)
        found[name] = [graph.get_session_options().intra_op_num_threads for graph in (model.encoder, model.decoder)]
    usual = usual_threads() or 1  # what the suite's sessions have where nothing is said
    assert found == {"found": [3, usual], "given": [2, 2], "off": [usual, usual]}

"""Cheap gates come first: what fails them gets no engine and is kept with what was found; one manifest is written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.bundles import Workshop, demo_workshop
from t5edge import pipeline
from t5edge.bundle.engine_record import EngineEntry
from t5edge.bundle.manifest import Manifest, damaged_files
from t5edge.bundle.parity_report import ParityReport
from t5edge.cli import main
from t5edge.errors import GateError
from t5edge.parity.ladder import CHECKS

ENCODER = tuple(check for check in CHECKS if check.name == "2 encoder")
Build = list[Manifest]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return demo_workshop(tmp_path_factory.mktemp("order"))


@pytest.fixture
def built(demo: Workshop, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Exports with blocks that are traced already and one check of the ladder; returns what engines were built from."""
    seen: Build = []
    blocks, verify_bundle = demo.blocks(), pipeline.verify_bundle

    def engines_for(folder: Path, manifest: Manifest, *_: Any) -> Iterator[tuple[str, EngineEntry]]:
        assert not (folder / "bundle.json").exists(), "the manifest is written at the end"
        seen.append(manifest)
        yield "8.6", EngineEntry({}, "not run: being built")
        yield "8.6", EngineEntry({}, "not run: no GPU")

    def encoder_only(*arguments: Any, **settings: Any) -> ParityReport:
        report: ParityReport = verify_bundle(*arguments, **settings, checks=ENCODER)
        return report

    monkeypatch.setattr(pipeline, "trace_blocks", lambda *_: blocks)
    monkeypatch.setattr(pipeline, "choose_targets", lambda *_, **__: ("tensorrt-rtx",))
    monkeypatch.setattr("t5edge.engines.build.engines_for", engines_for)
    monkeypatch.setattr(pipeline, "verify_bundle", encoder_only)
    return seen


def test_engines_are_built_of_proven_graphs(built: Build, tmp_path: Path) -> None:
    bundle = pipeline.export("t5-demo", "fp32", out=tmp_path / "out")
    (manifest,) = built
    assert manifest.parity is not None
    assert manifest.parity.passed
    assert set(manifest.files) >= {"encoder.onnx", "decoder.onnx", "weights.safetensors"}
    assert bundle.passed
    assert bundle.manifest == Manifest.read(bundle.folder)
    assert bundle.manifest.engines["tensorrt-rtx"]["8.6"].run == "not run: no GPU"
    assert bundle.manifest.costs is not None
    assert damaged_files(bundle.folder) == []
    assert "parity.json" in bundle.manifest.files


def test_a_bundle_that_fails_parity_gets_no_engine(
    built: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One weight is written wrong: only the numbers can tell."""
    save = pipeline.save_parts

    def save_and_spoil(*arguments: Any) -> Any:
        saved, path = save(*arguments), Path(arguments[3]) / "weights.safetensors"
        data = bytearray(path.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        data[start : start + 400_000 : 4] = bytes(len(range(start, start + 400_000, 4)))
        data[start + 3 : start + 400_000 : 4] = b"\x40" * len(range(start + 3, start + 400_000, 4))
        path.write_bytes(data)
        return saved

    monkeypatch.setattr(pipeline, "save_parts", save_and_spoil)
    out = tmp_path / "out"
    assert main(["export", "--variant", "t5-demo", "--target", "tensorrt-rtx", "--out", str(out)]) == 1
    assert built == []
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("t5edge export: parity failed; parity.json says where.")
    assert said.endswith(f"The bundle is kept for study as '{out}.failed'.")
    assert not out.exists()
    kept = Manifest.read(tmp_path / "out.failed")
    assert kept.engines == {}
    assert kept.parity is not None
    assert [result.name for result in kept.parity.failures] != []
    assert "parity.json" in kept.files


def test_engines_that_are_wrong_are_recorded_so(built: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any) -> Iterator[tuple[str, EngineEntry]]:
        yield "8.6", EngineEntry({}, "not run: wrong")
        raise GateError("the engines are wrong.")

    monkeypatch.setattr("t5edge.engines.build.engines_for", wrong)
    with pytest.raises(GateError, match=r"^the engines are wrong. The bundle is kept for study"):
        pipeline.export("t5-demo", "fp32", out=tmp_path / "out", no_verify=True)
    kept = Manifest.read(tmp_path / "out.failed")
    assert kept.engines["tensorrt-rtx"]["8.6"].run == "not run: wrong"
    assert damaged_files(tmp_path / "out.failed") == []

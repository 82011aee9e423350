"""Bundles that the first release wrote are read, run and written again as they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from t5edge.bundle.files import MANIFEST
from t5edge.bundle.manifest import Manifest, damaged_files
from t5edge.cli import main
from t5edge.runtime.model import load

HOME = Path(__file__).parents[2] / "bundles-0.1"
NAMES = ("efficient-kv16-fp32", "byt5-int8")
SIZES = ["--source-length", "7", "--past-length", "3"]


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_tokens_are_those_of_the_release(name: str) -> None:
    expected, model = np.load(HOME / f"{name}.npz"), load(HOME / name)
    logits = model.logits(expected["ids"], expected["mask"], expected["targets"])
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=2e-5 * np.abs(expected["logits"]).max())
    tokens = model.generate(expected["ids"], expected["mask"], num_beams=3, max_new_tokens=12)
    np.testing.assert_array_equal(tokens, expected["generated"])


@pytest.mark.parametrize("name", NAMES)
def test_reading_and_writing_the_manifest_changes_nothing(name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(HOME / name, tmp_path / name))
    manifest = Manifest.read(folder)
    assert damaged_files(folder) == []
    assert manifest.with_files(folder) == manifest
    manifest.write(folder)
    assert (folder / MANIFEST).read_bytes() == (HOME / name / MANIFEST).read_bytes()
    assert manifest.parity is not None
    assert manifest.parity.passed


@pytest.mark.parametrize("name", NAMES)
def test_inspect_reads_them(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(HOME / name)]) == 0
    shown = capsys.readouterr().out
    assert "parity: passed" in shown
    assert "?" not in shown
    assert main(["inspect", str(HOME / name), *SIZES, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    written = json.loads((HOME / name / MANIFEST).read_text())
    assert {key: data[key] for key in written} == written
    assert set(data) - set(written) == {"graphs", "cost_sizes"}
    assert data["cost_sizes"] == {"batch": 1, "source": 7, "target": 1, "past": 3}
    assert set(data["graphs"]) == {"encoder", "decoder"}
    assert set(data["graphs"]["decoder"]) == {"nodes", "operators", "weight_bytes", "flops"}

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from support.manifests import engine_record
from support.quantized_models import Model, row_with
from t5edge.bundle.engine_record import EngineAttention, EngineEntry
from t5edge.bundle.files import write_json
from t5edge.bundle.manifest import Manifest, damaged_files
from t5edge.bundle.precision import precision
from t5edge.calibration.plan import Settings
from t5edge.cli import main
from t5edge.tools.report.report import report_page

VOID = {"meta", "br"}


class Balanced(HTMLParser):
    """Fails on a tag that is never closed or closed twice; keeps the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        """Closed at once."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> str:
    parser = Balanced()
    parser.feed(page)
    assert not parser.open
    assert not re.search(r"""(?:src|href)=|url\(|@import""", page), "the page must stand alone"
    return parser.text


def with_facts(folder: Path, **facts: object) -> Path:
    Manifest.from_dict({**Manifest.read(folder).to_dict(), **facts}).write(folder)
    return folder


def test_a_page_shows_what_was_kept_and_why(outliers: Model) -> None:
    folder, plan = outliers.bundle("page", row_with(max_kl=0.02, min_top1=0.9), Settings(smooth=False))
    rungs = [
        {"name": "3 logits", "measure": "mean KL (nats)", "value": 0.01, "limit": 0.05, "verdict": "pass"},
        {"name": "8 task", "measure": "-", "value": None, "limit": None, "verdict": "not run: no <task>"},
    ]
    write_json(folder / "parity.json", {"rungs": rungs})
    sides = {"encoder_ms": 2.0, "step_ms": 1.0}
    speed = {"quantized": sides, "fp32": sides, "speedup": 1.0, "threads": 2, "source_tokens": 64, "steps": 16}
    speed |= {"encoder_speedup": 1.0, "step_speedup": 1.0}
    text = read(report_page(with_facts(folder, speed=speed)))
    for name in plan.kept:
        assert name in text
    for said in ("3 logits", "no <task>", "not run", "Sensitivity", "Activations", "Speed", "2.00 ms"):
        assert said in text
    assert f"{len(plan.kept)} sites" in text
    assert "Engines" not in text


def test_fp16_headroom_is_shown(plain: Model) -> None:
    row = precision("fp16")
    stack = {"k": 3, "t": [0], "largest_residual": 70_000.0, "largest_ffn": [1.0], "headroom": 0.94}
    facts = {"rescale": {"encoder": stack, "decoder": stack}}
    text = read(report_page(with_facts(plain.write("fp16-page", plain.graphs(row), row), **facts)))
    assert "70,000" in text
    assert "2^3" in text
    assert "Sensitivity" not in text


def test_engines_and_what_they_compute_in_are_shown(plain: Model) -> None:
    row = precision("int8-weight").computing("float16")
    record = engine_record(bytes=12_300_000, seconds=4.56, attention=EngineAttention("decomposable", 4, 3))
    folder = plain.write("engines-page", plain.graphs(precision("fp16")), row)
    entry = EngineEntry({"encoder": record}, "not run: no GPU")
    Manifest.read(folder).with_engines("tensorrt-rtx", "8.6", entry).write(folder)
    text = read(report_page(folder))
    for said in ("int8-weight computed in float16", "tensorrt-rtx 8.6", "12.3 MB", "4.6", "3 of 4", "not run: no GPU"):
        assert said in text


def test_the_command_leaves_the_bundle_as_it_is(
    plain: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = plain.bundle("command", precision("int8-weight"))
    assert main(["report", str(folder)]) == 0
    page = folder.with_name("command.html")
    assert "int8-weight" in read(page.read_text(encoding="utf-8"))
    assert damaged_files(folder) == []
    assert main(["report", str(folder), "--out", str(tmp_path / "no" / "page.html")]) == 2
    assert main(["report", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2

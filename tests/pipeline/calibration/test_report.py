from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from support.manifests import engine_record
from support.quantized_models import Model, row_with
from t5edge.bundle.engine_record import EngineAttention, EngineEntry
from t5edge.bundle.files import write_json
from t5edge.bundle.manifest import Manifest, damaged_files
from t5edge.bundle.parity_report import ParityReport, at_most
from t5edge.bundle.precision import precision
from t5edge.bundle.records import RescaleFacts, Speed, StackRescale, Times
from t5edge.calibration.plan import Settings
from t5edge.cli import main
from t5edge.errors import UserError
from t5edge.tools.report import report
from t5edge.tools.report.report import MARKER, report_page, write_page

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


TIMES = Times(2.0, 1.0)
SPEED = Speed(64, 16, 2, TIMES, TIMES, 1.0, 1.0, 1.0)
STACK = StackRescale(k=3, t=(0,), largest_residual=70_000.0, largest_ffn=(1.0,), headroom=0.94)
ENTRY = EngineEntry(
    {"encoder": engine_record(bytes=12_300_000, seconds=4.56, attention=EngineAttention("decomposable", 4, 3))},
    "not run: no GPU",
)


def with_facts(folder: Path, **facts: Any) -> Path:
    replace(Manifest.read(folder), **facts).write(folder)
    return folder


def test_a_page_shows_what_was_kept_and_why(outliers: Model, tmp_path: Path) -> None:
    made, plan = outliers.bundle("page", row_with(max_kl=0.02, min_top1=0.9), Settings(smooth=False))
    folder = Path(shutil.copytree(made, tmp_path / "page"))
    rungs = [
        {"name": "3 logits", "measure": "mean KL (nats)", "value": 0.01, "limit": 0.05, "verdict": "pass"},
        {"name": "8 task", "measure": "-", "value": None, "limit": None, "verdict": "not run: no <task>"},
    ]
    write_json(folder / "parity.json", {"rungs": rungs})
    text = read(report_page(with_facts(folder, speed=SPEED)))
    for name in plan.excluded:
        assert name in text
    for said in ("3 logits", "no <task>", "not run", "Sensitivity", "Activations", "Speed", "2.00 ms"):
        assert said in text
    assert f"{len(plan.excluded)} quantization points" in text
    assert "Engines" not in text


def test_fp16_headroom_is_shown(plain: Model) -> None:
    row = precision("fp16")
    folder = plain.write("fp16-page", plain.graphs(row), row)
    text = read(report_page(with_facts(folder, rescale=RescaleFacts(STACK, STACK))))
    assert "70,000" in text
    assert "2^3" in text
    assert "Sensitivity" not in text


def test_engines_and_what_they_compute_in_are_shown(plain: Model) -> None:
    row = precision("int8-weight").computing("float16")
    folder = plain.write("engines-page", plain.graphs(precision("fp16")), row)
    text = read(report_page(with_facts(folder, engines={"tensorrt-rtx": {"8.6": ENTRY}})))
    for said in ("int8-weight computed in float16", "tensorrt-rtx 8.6", "12.3 MB", "4.6", "3 of 4", "not run: no GPU"):
        assert said in text


def test_the_command_leaves_the_bundle_as_it_is(
    plain: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = plain.bundle("command", precision("int8-weight"), Settings(gate=False))
    folder = Path(shutil.copytree(made, tmp_path / "command"))
    assert main(["report", str(folder)]) == 0
    page = folder.with_name("command.html")
    assert "int8-weight" in read(page.read_text(encoding="utf-8"))
    assert damaged_files(folder) == []
    assert main(["report", str(folder), "--out", str(tmp_path / "no" / "page.html")]) == 2
    assert main(["report", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)><!--{{ 7 * 7 }}\x1b[2J\x07\x9b31m"


class Elements(Balanced):
    """Every element and attribute of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[str, ...]] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # type: ignore[override]
        super().handle_starttag(tag, attrs)
        self.found |= {(tag, name) for name, _ in attrs} | {(tag,)}

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # type: ignore[override]
        self.found |= {(tag, name) for name, _ in attrs} | {(tag,)}


def elements(page: str) -> set[tuple[str, ...]]:
    parser = Elements()
    parser.feed(page)
    return parser.found


def changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """``value`` with every leaf, and every key of a map that holds names, changed."""
    if isinstance(value, dict):
        return {key: changed(entry, change) for key, entry in value.items()}
    return [changed(entry, change) for entry in value] if isinstance(value, list) else change(value)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, (dict, list)):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(entry, (*path, key))
    else:
        yield path


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of ``value`` with ``new`` at ``path``."""
    if not path:
        return new
    if isinstance(value, dict):
        return {**value, path[0]: replaced(value[path[0]], path[1:], new)}
    return [replaced(entry, path[1:], new) if index == path[0] else entry for index, entry in enumerate(value)]


@pytest.fixture(scope="module")
def full(outliers: Model) -> tuple[Path, dict[str, Any]]:
    """A bundle whose manifest fills every section of the page."""
    folder, _ = outliers.bundle("hostile", row_with(max_kl=0.02, min_top1=0.9), Settings())
    facts: dict[str, Any] = {
        "speed": SPEED,
        "engines": {"tensorrt-rtx": {"8.6": ENTRY}},
        "rescale": RescaleFacts(STACK, STACK),
        "parity": ParityReport([at_most("3 logits", "mean KL (nats)", 0.01, 0.05)], {"seconds": 1.0}),
    }
    check = {"name": "3 logits", "measure": "mean KL (nats)", "value": 0.01, "limit": 0.05, "verdict": "pass"}
    write_json(folder / "parity.json", {"rungs": [check, {**check, "verdict": "not run: no task"}]})
    return folder, replace(Manifest.read(folder), **facts).to_dict()


@pytest.mark.parametrize("place", ["before", "behind"])
def test_nothing_in_a_hostile_manifest_becomes_markup(full: tuple[Path, dict[str, Any]], place: str) -> None:
    folder, manifest = full
    write_json(folder / "bundle.json", manifest)
    honest = elements(report_page(folder))

    def hostile(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return HOSTILE + value if place == "before" else value + HOSTILE

    spoiled = changed(manifest, hostile) | {key: manifest[key] for key in ("format", "cache", "ports")}
    spoiled["precision"]["compute"] = manifest["precision"]["compute"]  # what is one of a few words is refused else
    spoiled["files"] = {hostile(name): facts for name, facts in manifest["files"].items()}
    spoiled["tools"] = {hostile(name): hostile(version) for name, version in manifest["tools"].items()}
    record = manifest["engines"]["tensorrt-rtx"]["8.6"]["encoder"]
    spoiled["engines"] = {HOSTILE: {HOSTILE: {HOSTILE: record, "run": HOSTILE}}}
    checks = changed(json.loads((folder / "parity.json").read_text()), hostile)
    write_json(folder / "bundle.json", spoiled)
    write_json(folder / "parity.json", checks)
    page = report_page(folder)
    assert elements(page) <= honest
    assert "{{ 7 * 7 }}" in page
    assert "<script" not in page
    assert "<!--" not in page.removeprefix(MARKER)
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", page)


def test_any_value_of_another_type_is_refused_or_escaped(full: tuple[Path, dict[str, Any]]) -> None:
    """Among them numbers that are strings: ``quantization.gate.tried[].kept`` once reached the page as it was."""
    folder, manifest = full
    write_json(folder / "bundle.json", manifest)
    honest = elements(report_page(folder))
    paths = [path for path in leaves(manifest) if path[0] not in ("format", "format_version", "ports", "files")]
    seen = {tuple(part for part in path if isinstance(part, str)): path for path in paths}
    assert ("quantization", "gate", "tried", "kept") in seen
    for path in seen.values():
        write_json(folder / "bundle.json", replaced(manifest, path, HOSTILE))
        with suppress(UserError):
            page = report_page(folder)
            assert elements(page) <= honest, path
            assert "<script" not in page, path


@pytest.mark.parametrize("value", [None, [HOSTILE], {HOSTILE: HOSTILE}, HOSTILE])
def test_a_damaged_manifest_is_one_printable_line(full: tuple[Path, dict[str, Any]], value: Any) -> None:
    folder, manifest = full
    write_json(folder / "bundle.json", replaced(manifest, ("architecture", "d_model"), value))
    with pytest.raises(UserError, match=r"bundle.json' does not fit its format") as caught:
        report_page(folder)
    assert str(caught.value).isprintable()


def test_a_page_replaces_only_pages(full: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, manifest = full
    write_json(folder / "bundle.json", manifest)
    page, out = report_page(folder), tmp_path / "page.html"
    write_page(page, out, folder)
    write_page(page, out, folder)
    assert out.read_text(encoding="utf-8") == page
    for name, content in (("notes.html", "<!doctype html>mine"), ("empty", ""), ("weights.bin", MARKER[:-2])):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match="is not a page of 't5edge report'"):
            write_page(page, tmp_path / name, folder)
        assert (tmp_path / name).read_text() == content
    with pytest.raises(UserError, match="is not a page of 't5edge report'"):
        write_page(page, tmp_path, folder)


@pytest.mark.parametrize("name", ["bundle.json", "new.html", "onnx/../encoder.onnx"])
def test_a_page_is_never_written_into_the_bundle(full: tuple[Path, dict[str, Any]], tmp_path: Path, name: str) -> None:
    folder, _ = full
    link = tmp_path / "link"
    link.symlink_to(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for out in (folder / name, link / name):
        with pytest.raises(UserError, match="lies in the bundle"):
            write_page(MARKER, out, folder)
    (tmp_path / "alias.html").symlink_to(folder / "encoder.onnx")
    with pytest.raises(UserError, match="lies in the bundle"):
        write_page(MARKER, tmp_path / "alias.html", folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_without_jinja2_the_extra_is_named(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    report._environment.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UserError, match=r'^report needs jinja2: pip install "t5edge\[report\]"$'):
        report_page(plain.folder)

"""Two bundles side by side."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from support.manifests import write_manifest
from t5edge.bundle.parity_report import ParityReport, at_least, at_most, not_run
from t5edge.bundle.precision import precision
from t5edge.bundle.records import Speed, Times
from t5edge.cli import main
from t5edge.tools.report.report import compare_page

HOSTILE = "<script>alert(1)</script>"


def speed(encoder: float, step: float) -> Speed:
    return Speed(64, 16, 2, Times(encoder, step), Times(8.0, 8.0), 1.0, 1.0, 1.0)


@pytest.fixture
def bundles(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "first", tmp_path / "second"
    shared: dict[str, Any] = {"content_key": "ab" * 32}
    for folder, size in ((first, 4_000_000), (second, 1_000_000)):
        folder.mkdir()
        (folder / "weights.safetensors").write_bytes(b"\0" * size)
    results = [
        at_most("2 encoder", "relative error", 1e-3, 1e-2),
        at_most("3 texts", "mean KL", 1e-9, 1e-1),
        at_least("3 texts", "top-1 agreement", 0.99, 0.9, raw=0.99),
    ]
    write_manifest(first, parity=ParityReport(results, {"cpu": "x"}), speed=speed(4.0, 2.0), **shared)
    results = [
        at_most("2 encoder", "relative error", 5e-3, 2e-1),
        at_most("3 texts", "mean KL", 5e-9, 1e-1),
        at_least("3 texts", "top-1 agreement", 0.95, 0.9, raw=0.95),
        not_run("8 task", HOSTILE),
    ]
    row = precision("int8")
    write_manifest(
        second, precision=row, parity=ParityReport(results, {"cpu": "x"}), speed=speed(2.0, 3.0), variant="y", **shared
    )
    return first, second


def cells(page: str) -> dict[str, list[str]]:
    """The rows of all tables, by their first cells."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    texts = [re.sub(r"<[^>]+>", "", cell).strip() for row in rows for cell in [row.replace("</td>", "|")]]
    return {row.split("|")[0].strip(): [" ".join(cell.split()) for cell in row.split("|")[1:4]] for row in texts}


def test_the_better_figure_is_marked_and_rounding_is_not(bundles: tuple[Path, Path]) -> None:
    rows = cells(compare_page(*bundles))
    assert rows["graphs and weights"] == ["4.0 MB", "1.0 MB", "B by 4.00x"]
    assert rows["encoder"] == ["4.00 ms", "2.00 ms", "B by 2.00x"]
    assert rows["decoder step"] == ["2.00 ms", "3.00 ms", "A by 1.50x"]
    assert rows["2 encoder: relative error"] == ["0.001 (0.01)", "0.005 (0.2)", "A by 5.00x"]
    assert rows["3 texts: mean KL"] == ["1e-09 (0.1)", "5e-09 (0.1)", "rounding"]
    assert rows["3 texts: top-1 agreement"][2] in ("A", "about the same")
    assert rows["not run"] == ["0", "1", "A"]
    assert rows["checkpoint hash"] == ["abababababababab", "abababababababab", "same"]


def test_bundles_of_other_checkpoints_and_machines_are_said_to_be(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    assert "Both are of the same checkpoint" in compare_page(*bundles)
    other = tmp_path / "other"
    other.mkdir()
    write_manifest(other, content_key="cd" * 32)
    page = compare_page(bundles[0], other)
    assert "not bundles of the same checkpoint" in page
    assert "different CPUs" in page
    assert "Not proven" in page


def test_what_bundles_say_stays_text(bundles: tuple[Path, Path]) -> None:
    page = compare_page(*bundles)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r"""(?:src|href)=|url\(|@import""", page)


def test_the_page_is_written_beside_the_first_bundle(
    bundles: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(bundles[0]), "--json", str(bundles[1])]) == 0
    assert (bundles[0].parent / "first-beside-second.html").is_file()
    said = json.loads(capsys.readouterr().out)["bundles"]
    assert [bundle["bundle"] for bundle in said] == [str(folder) for folder in bundles]
    assert [bundle["verdict"] for bundle in said] == ["passed", "passed except what was not run"]
    assert [bundle["not_run"] for bundle in said] == [0, 1]
    assert main(["report", str(bundles[1])]) == 0
    line = "passed except what was not run; 3 passed, 0 failed, 1 not run, 0 not applicable"
    assert capsys.readouterr().out.splitlines()[-1] == f"{bundles[1]}: {line}"
    assert main(["report", *map(str, bundles), "--out", str(bundles[1] / "page.html")]) == 2
    assert main(["report", str(bundles[0]), str(bundles[0].parent)]) == 2
    assert "lies in the bundle" in capsys.readouterr().err

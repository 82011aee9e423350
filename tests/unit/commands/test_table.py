"""Names and commands at 80 columns: whole, so that they can be copied."""

from __future__ import annotations

import pytest

from t5edge.cli import main
from t5edge.exporter.family.variants import variants

NAMES = [row.name for row in variants()]


@pytest.fixture(params=["60", "80", "100", "200"])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", request.param)
    return int(request.param)


def test_the_names_of_all_variants_are_whole(columns: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["variants"]) == 0
    shown = capsys.readouterr().out
    assert all(f" {name} " in shown for name in NAMES)
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= columns
    assert ("no room for:" in shown) == (columns < 200)


def test_the_names_of_all_planned_variants_are_whole(columns: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["variants", "--plan", "--device", "l4"]) == 0
    shown = capsys.readouterr().out
    assert all(f" {name.rpartition('/')[2]} " in shown for name in NAMES)
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= columns


def test_a_pipe_without_a_width_gets_every_column(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert main(["variants", "t5-small"]) == 0
    assert "vocab" in capsys.readouterr().out


def test_the_commands_of_doctor_are_on_a_line_each(columns: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    assert "…" not in shown
    for line in shown.splitlines():
        assert line.count('"') % 2 == 0, line
        assert not line.endswith("pip install")

from __future__ import annotations

import json

import pytest

from t5edge.cli import main


def test_json_stays_a_list_of_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["variants", "t5-small", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["name"] == "google-t5/t5-small"
    assert "plan" not in row


def test_a_plan_is_part_of_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["variants", "t5-small", "t5-base", "--plan", "--precision", "int8", "--device", "l4", "--json"]
    assert main(command) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["google-t5/t5-small", "google-t5/t5-base"]
    assert rows[0]["plan"]["precision"] == "int8"
    assert rows[0]["plan"]["device"]["name"] == "l4"
    assert rows[0]["plan"]["decode"]["bound"] == "memory"
    assert rows[0]["plan"]["bundle_bytes"] < rows[1]["plan"]["bundle_bytes"]


def test_a_plan_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["variants", "t5-small", "--plan", "--bandwidth", "50", "--tflops", "2"]) == 0
    shown = capsys.readouterr().out
    assert "t5-small" in shown
    assert "Accuracy is not in this table" in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "l4", "--tflops", "3"], "exclude each other"),
        (["--bandwidth", "3"], "both must be given"),
        (["--device", "abacus"], "'abacus' is unknown"),
        (["--precision", "fp8"], "'fp8' is unknown"),
        (["--device", "l4", "--source-length", "0"], "at least 1"),
    ],
)
def test_bad_flags_exit_2(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["variants", "t5-small", "--plan", *flags]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]

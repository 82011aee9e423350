from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.bundles import Workshop
from t5edge.cli import main
from t5edge.commands.bench import BenchOptions
from t5edge.errors import UserError
from t5edge.runtime.model import load
from t5edge.tools.bench.bench import BATCHES, SOURCES, Figure, bench_bundle, summarize


def test_median_and_quartiles() -> None:
    assert summarize([4.0, 1.0, 2.0, 3.0, 5.0]) == Figure(3.0, 2.0, 4.0)
    assert summarize([7.0]) == Figure(7.0, 7.0, 7.0)


def test_every_size_is_measured_against_the_machine(demo: Workshop, tmp_path: Path) -> None:
    folder = demo.fresh(tmp_path / "bundle", "fp32")
    (folder / "tokenizer.json").unlink()
    report = bench_bundle(load(folder), batches=(1, 2), sources=(4, 9), new_tokens=3, rounds=(2, 2))
    assert [(row["batch"], row["source"]) for row in report["rows"]] == [(1, 4), (1, 9), (2, 4), (2, 9)]
    for row in report["rows"]:
        assert row["rounds"] == 2
        assert 0 < row["encoder_ms"]["median"] < row["first_token_ms"]["median"]
        assert row["per_token_ms"]["low"] <= row["per_token_ms"]["median"] <= row["per_token_ms"]["high"]
        floor_ms = row["step_bytes"] / row["read_gb_s"] / 1e6
        assert row["step_over_floor"] == pytest.approx(row["per_token_ms"]["median"] / floor_ms)
        assert row["tokens_per_second"]["median"] > 0
    assert report["peak_mib"]["end"] >= report["peak_mib"]["loaded"] > 0


@pytest.fixture(scope="module")
def report(demo: Workshop) -> dict[str, Any]:
    """The least that can be measured."""
    return bench_bundle(load(demo.bundle("fp32")), batches=(1,), sources=(4,), new_tokens=2, rounds=(1, 1))


def test_a_step_reads_the_decoder_but_not_the_encoder(demo: Workshop, report: dict[str, Any]) -> None:
    stored = (demo.bundle("fp32") / "weights.safetensors").stat().st_size
    assert 0.2 * stored < report["rows"][0]["step_bytes"] < stored


def test_the_command_reports_and_draws(demo: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "bench.png"
    flags = ["--quick", "--source", "5", "--threads", "1", "--plot", str(image)]
    assert main(["bench", str(demo.bundle("fp32")), *flags, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(row["batch"], row["source"], row["new_tokens"]) for row in report["rows"]] == [(1, 5, 8)]
    assert report["threads"] == 1
    assert image.read_bytes().startswith(b"\x89PNG")


def test_the_command_shows_a_table(demo: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(demo.bundle("fp32")), "--quick", "--source", "5"]) == 0
    shown = capsys.readouterr().out
    assert "tokens/s" in shown
    assert "GB/s" in shown


def test_unset_flags_take_the_whole_grid() -> None:
    assert BenchOptions("b").settings == {"new_tokens": 32}
    assert (BATCHES, SOURCES) == ((1, 4, 16), (16, 64, 256, 512))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch", "0"], "at least 1"),
        (["--new-tokens", "1"], "at least 2"),
        (["--threads", "0"], "at least 1"),
        (["--threads", "2", "--target", "tensorrt"], "leave it out"),
    ],
)
def test_wrong_flags_say_what_to_do(
    demo: Workshop, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(demo.bundle("fp32")), *flags]) == 2
    assert message in capsys.readouterr().err


def test_an_unwritable_image_is_the_users_error(report: dict[str, Any], tmp_path: Path) -> None:
    from t5edge.tools.bench.plot import draw

    with pytest.raises(UserError, match="cannot be written"):
        draw(report, tmp_path / "missing" / "bench.png")

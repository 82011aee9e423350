from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from support.bundles import Workshop
from t5edge.commands.build import BuildOptions, run
from t5edge.errors import UserError
from t5edge.progress import Silent


def test_engines_are_built_and_listed(demo: Workshop, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")
    folder = demo.fresh(tmp_path / "bundle", "fp16")
    result = run(BuildOptions(str(folder), ("tensorrt-rtx",), ("8.6",)), Silent())
    assert sorted(result.data["engines"]["tensorrt-rtx"]["8.6"]) == ["decoder", "encoder", "run"]
    console = Console(record=True, width=200)
    result.show(console)
    text = console.export_text()
    assert "tensorrt-rtx 8.6  decoder" in text
    assert "8 of 8 attentions fused" in text


def test_a_missing_bundle_is_named() -> None:
    with pytest.raises(UserError, match="the bundle is missing"):
        run(BuildOptions(), Silent())


def test_without_a_target_that_runs_here_one_must_be_named(demo: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t5edge.engines.doctor.engine_targets", lambda: ())
    with pytest.raises(UserError, match="no engine target runs here"):
        run(BuildOptions(str(demo.bundle("fp16"))), Silent())

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from t5edge.bundle.precision import precision
from t5edge.errors import UserError
from t5edge.exporter.family.variants import expand_patterns
from t5edge.tools.planning.devices import DEVICES
from t5edge.tools.planning.plan import Lengths, VariantCost, plan_variant
from t5edge.tools.planning.plot import draw


def plans() -> list[VariantCost]:
    return [plan_variant(row, precision("fp16"), DEVICES[0]) for row in expand_patterns(["t5-efficient-tiny*"])]


def test_an_image_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(plans(), DEVICES[0], Lengths(), tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_another_ending_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(UserError, match=r"ends in \.png"):
        draw(plans(), DEVICES[0], Lengths(), tmp_path / "plan.doc")


def test_missing_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 't5edge\[plot\]'"):
        draw(plans(), DEVICES[0], Lengths(), tmp_path / "plan.png")

"""Parts of the manifest that stages fill: they say what is wrong, and survive JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from t5edge.bundle.records import Layout, LayoutParity, RescaleFacts, Speed, StackRescale, Times
from t5edge.bundle.schema import plain, read_as

STACK = StackRescale(k=3, t=(0, 2), largest_residual=7e4, largest_ffn=(1.0, 2.5), headroom=0.94)
PARTS = (
    RescaleFacts(STACK, StackRescale()),
    Layout("optimum", LayoutParity({"merged": 2e-6}, 1e-5, passed=True)),
    Speed(64, 16, 2, Times(2.0, 1.0), Times(4.0, 1.5), 2.0, 1.5, 1.7),
)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_a_part_survives_json(part: Any) -> None:
    problems: list[str] = []
    assert read_as(type(part), json.loads(json.dumps(plain(part))), "part", problems) == part
    assert problems == []


def test_a_layout_says_why_it_must_not_be_used() -> None:
    assert Layout("optimum").problem() is None
    wrong = LayoutParity({"merged": 0.25, "two files": 1e-6}, 1e-5, passed=False)
    assert Layout("optimum", wrong).problem() == (
        "the graphs of layout optimum do not give our logits "
        "(relative error merged: 0.25, two files: 1e-06, limit 1e-05)."
    )

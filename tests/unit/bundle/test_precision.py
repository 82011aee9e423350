"""The table of precisions, and its way through a manifest."""

from __future__ import annotations

import json

import pytest

from t5edge.bundle.precision import PRECISIONS, Precision, precision
from t5edge.bundle.schema import read_as
from t5edge.errors import UserError

NAMES = ["fp32", "fp16", "int8", "int8-weight", "int4-weight", "bf16"]


def test_the_table_has_these_names() -> None:
    assert [row.name for row in PRECISIONS] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_row_survives_the_manifest(name: str) -> None:
    row = precision(name)
    problems: list[str] = []
    assert read_as(Precision, json.loads(json.dumps(row.to_dict())), "precision", problems) == row
    assert problems == []


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_held_to_a_bound_on_its_logits(name: str) -> None:
    row = precision(name)
    assert row.max_kl is not None
    assert row.min_top1 is not None
    assert 0.9 <= row.min_top1 <= 1


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(UserError, match=f"'fp12' is unknown; choose one of {', '.join(NAMES)}"):
        precision("fp12")


def test_float16_range_needs_the_rescale_and_the_title_says_what_is_computed() -> None:
    row = precision("int8-weight")
    half = row.computing("float16")
    assert (row.rescale, half.rescale, half.computing("float").rescale) == (False, True, False)
    assert (row.title, half.title) == ("int8-weight", "int8-weight computed in float16")
    assert precision("fp16").title == "fp16"
    assert row.computing("float") is row


@pytest.mark.parametrize(
    ("name", "stored"), [("fp32", 4.0), ("fp16", 2.0), ("bf16", 2.0), ("int8", 1.0), ("int4-weight", 0.5)]
)
def test_bytes_of_a_weight(name: str, stored: float) -> None:
    assert precision(name).bytes_per_weight == stored

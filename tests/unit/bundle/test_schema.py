"""JSON as dataclasses: every problem is named at once, none raises midway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from t5edge.bundle.schema import Count, FileName, plain, read_as, too_deep


@dataclass(frozen=True)
class Part:
    size: Count
    name: FileName
    factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class Whole:
    parts: dict[str, Part]
    note: str | None = None


GOOD = {"parts": {"a": {"size": 3, "name": "x/y.onnx", "factors": [1.5, 2]}}, "note": None}


def problems_of(data: Any) -> list[str]:
    problems: list[str] = []
    read_as(Whole, data, "bundle", problems)
    return problems


def test_what_fits_is_read_and_written_back() -> None:
    problems: list[str] = []
    whole = read_as(Whole, GOOD, "bundle", problems)
    assert whole == Whole({"a": Part(3, "x/y.onnx", (1.5, 2))})
    assert plain(whole) == GOOD
    assert problems == []


@pytest.mark.parametrize(
    "part",
    [
        {"size": -1, "name": "x"},
        {"size": True, "name": "x"},
        {"size": 1.5, "name": "x"},
        {"size": "3", "name": "x"},
        {"name": "x"},
        {"size": 1, "name": "../x"},
        {"size": 1, "name": "/x"},
        {"size": 1, "name": "x", "factors": ["a"]},
        {"size": 1, "name": "x", "factors": {}},
        [],
        None,
        "text",
    ],
)
def test_what_does_not_fit_is_named(part: Any) -> None:
    (problem,) = problems_of({"parts": {"a": part}})
    assert "parts.a" in problem
    assert "\n" not in problem


def test_every_problem_is_found_at_once() -> None:
    wrong = {"parts": {"a": {"size": -1, "name": "x"}, "b": {"size": 1}}, "note": 5}
    assert len(problems_of(wrong)) == 3


def test_nesting_has_an_end() -> None:
    deep: Any = 0
    for _ in range(100):
        deep = [deep]
    assert too_deep(deep)
    assert not too_deep(GOOD)

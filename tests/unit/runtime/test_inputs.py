"""What a caller hands over is checked before anything runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from t5edge.bundle.architecture import Architecture
from t5edge.errors import UserError
from t5edge.runtime.batches import batches
from t5edge.runtime.inputs import IGNORED, as_ids, as_labels, as_mask, check_memory

SMALL = Architecture(
    vocab_size=100,
    d_model=32,
    d_kv=8,
    d_ff=64,
    num_heads=4,
    encoder_layers=2,
    decoder_layers=2,
    activation="relu",
    gated=False,
    tied=True,
    scale_logits=True,
)


@pytest.mark.parametrize("given", [[[3, 4, 1]], np.array([[3, 4, 1]], np.int32), np.array([[3, 4, 1]], np.uint8)])
def test_whole_numbers_become_int64(given: Any) -> None:
    ids = as_ids("input_ids", given, 100)
    assert ids.dtype == np.int64
    assert ids.tolist() == [[3, 4, 1]]
    assert as_mask(None, ids).tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([[4.7, 5.2]], "array of float64"),
        ([[4.0, 5.0]], "array of float64"),
        ([[1j, 2]], "array of complex128"),
        ([[True, False]], "array of bool"),
        ([["a"]], "whole numbers"),
        ([[1, 2], [3]], "no rectangular array"),
        ([1, 2], r"shape \[2\]"),
        (np.zeros((1, 0), np.int64), r"shape \[1, 0\]"),
        ([[0, -1]], "run from -1 to 0; the vocabulary has 100 ids"),
        ([[0, 100]], "run from 0 to 100"),
    ],
)
def test_everything_else_is_refused_in_one_line(given: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        as_ids("input_ids", given, 100)
    assert "\n" not in str(caught.value)


def test_labels_are_ids_and_what_does_not_count() -> None:
    labels = as_labels("target_ids", [[3, 99], [1, IGNORED]], 100)
    assert labels.dtype == np.int64
    assert labels.tolist() == [[3, 99], [1, -100]]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([[3, 100]], "target_ids run from 3 to 100; the vocabulary has 100 ids"),
        ([[3, -1]], "target_ids run from -1 to 3"),
        ([[3, 1], [-100, -100]], "target_ids, row 2 of 2 is empty"),
        ([3, -100], r"target_ids has shape \[2\]"),
        ([[3.0]], "target_ids is an array of float64"),
    ],
)
def test_other_labels_are_refused(given: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        as_labels("target_ids", given, 100)


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        ([[1, 1]], r"shape \[1, 2\]"),
        ([[1, 1, 0.5]], "float64"),
        ([[1, 2, 1]], "runs from 1 to 2"),
        ([[True, True, False]], "bool"),
    ],
)
def test_a_mask_is_zeros_and_ones_of_the_ids_shape(mask: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        as_mask(mask, np.array([[3, 4, 1]]))


@pytest.mark.parametrize(("rows", "source", "target"), [(1, 10, 10**12), (10**9, 10, 10), (1, 10**6, 10)])
def test_what_does_not_fit_is_refused_before_it_is_asked_for(rows: int, source: int, target: int) -> None:
    check_memory(SMALL, 4, 512, 256)
    with pytest.raises(UserError, match=r"GB are free; send less at once"):
        check_memory(SMALL, rows, source, target)


def test_texts_share_batches_by_length() -> None:
    lengths = [5, 900, 7, 3, 6, 800]
    found = batches(lengths, most=1000)
    assert sorted(index for batch in found for index in batch) == list(range(6))
    assert all(len(batch) * max(lengths[index] for index in batch) <= 1000 for batch in found)
    assert len(found) == 3


def test_what_fits_stays_one_batch_in_order_and_a_longer_text_stands_alone() -> None:
    assert batches([5, 3, 4], most=15) == [[0, 1, 2]]
    assert batches([50], most=15) == [[0]]
    assert batches([5, 50, 3], most=15) == [[2, 0], [1]]
    assert batches([], most=15) == []

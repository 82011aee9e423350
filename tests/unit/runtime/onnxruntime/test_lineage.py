from __future__ import annotations

import numpy as np
import pytest

from t5edge.runtime.onnxruntime.lineage import Lineage


def test_only_what_rows_have_not_in_common_is_copied() -> None:
    lineage = Lineage(3)
    assert lineage.move(np.array([0, 0, 2]), 2) == [(1, 0, 0)]
    assert lineage.move(np.array([0, 1, 1]), 5) == [(2, 1, 0)]
    assert lineage.move(np.array([0, 0, 2]), 6) == [(1, 0, 2)], "both began as row 0"
    assert lineage.move(np.array([0, 0, 2]), 6) == [], "nothing was written since"
    assert lineage.move(np.array([0, 1, 1]), 7) == [(2, 1, 2)]


def test_what_is_written_again_is_another() -> None:
    lineage = Lineage(2)
    lineage.move(np.array([0, 0]), 4)
    lineage.forget(3)
    assert lineage.move(np.array([0, 0]), 4) == [(1, 0, 3)]
    lineage.forget(9)
    assert lineage.move(np.array([1, 1]), 4) == []


@pytest.mark.parametrize("seed", range(10))
def test_copies_give_what_whole_rows_would(seed: int) -> None:
    """Steps, moves and drafts that are forgotten, on caches whose entries are numbers that never come twice."""
    random = np.random.default_rng(seed)
    lineage, cache, length, written = Lineage(4), np.zeros((4, 200), np.int64), 0, 0
    for _ in range(60):
        for _ in range(random.integers(1, 4)):
            cache[:, length] = written + np.arange(4)
            length, written = length + 1, written + 4
        if random.random() < 0.2:
            length = int(random.integers(max(0, length - 4), length))
            lineage.forget(length)
        rows = random.integers(0, 4, 4)
        whole, before = cache[rows, :length].copy(), cache.copy()
        for row, old, first in lineage.move(rows, length):
            cache[row, first:length] = before[old, first:length]
        assert np.array_equal(cache[:, :length], whole)

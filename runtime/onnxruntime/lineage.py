"""Which positions the caches of two rows have in common, so that a row that continues another copies only the rest.

    row 0   a b c d e          beam 1 continues beam 0 behind c: both hold what one row has written
    row 1   a b c x            rows 1 := 0  copies positions 3 and 4

Beams of a sentence part late: of t5-base's shape, four beams and 64 tokens copy a fifteenth to a thirtieth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from t5edge.runtime.generation.step import Tokens


class Lineage:
    """``writers`` int64 [rows, positions]: equal numbers are the same keys and values. The first ``known`` are noted.

    Nothing is noted while rows do not move: every row has then written what is behind ``known`` itself.
    """

    def __init__(self, rows: int) -> None:
        self.writers = np.zeros((rows, 0), np.int64)
        self.known = self.next = 0

    def move(self, rows: Tokens, length: int) -> list[tuple[int, int, int]]:
        """Row ``r`` of ``length`` positions becomes ``rows[r]``: row, old row and first position to copy, where any."""
        count, known = len(rows), self.known
        own = np.repeat(self.next + np.arange(count)[:, None], length - known, axis=1)
        self.writers = np.concatenate((self.writers[:, :known], own), axis=1)
        self.known, self.next = length, self.next + count
        (moved,) = np.nonzero(rows != np.arange(count))
        alike = np.logical_and.accumulate(self.writers[moved] == self.writers[rows[moved]], axis=1).sum(axis=1)
        copies = zip(moved.tolist(), rows[moved].tolist(), alike.tolist(), strict=True)
        self.writers = self.writers[rows]
        return [(row, old, first) for row, old, first in copies if first < length]

    def forget(self, length: int) -> None:
        """Behind the first ``length`` positions rows write anew."""
        self.known = min(self.known, length)

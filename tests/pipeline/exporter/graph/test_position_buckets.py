"""Buckets as the paper has them: exact up to half their number, then logarithmic, then one for all that is far."""

from __future__ import annotations

from t5edge.exporter.graph.position_buckets import bucket_table


def test_both_directions_have_buckets_of_their_own() -> None:
    table = bucket_table(32, 128, bidirectional=True)
    assert len(table) == 257
    assert table[128] == 0
    assert table[128 - 7 : 128] == (7, 6, 5, 4, 3, 2, 1)
    assert table[129 : 129 + 7] == (17, 18, 19, 20, 21, 22, 23)
    assert (table[0], table[-1]) == (15, 31)


def test_the_decoder_looks_back_only() -> None:
    table = bucket_table(32, 128, bidirectional=False)
    assert len(table) == 129
    assert table[-16:] == tuple(range(15, -1, -1))
    assert table[0] == 31
    assert list(table) == sorted(table, reverse=True)

from __future__ import annotations

from t5edge.runtime.generation.lookup import Lookup

SOURCE = [5, 6, 7, 8, 9, 5, 6, 3, 1]


def test_the_first_draft_is_the_sources_beginning() -> None:
    assert Lookup(SOURCE).draft(3) == ([5, 6, 7], 0)


def test_what_followed_the_last_tokens_is_drafted() -> None:
    lookup = Lookup(SOURCE)
    lookup.extend([7, 8])
    assert lookup.draft(9) == ([9, 5, 6, 3, 1], 2)


def test_the_match_behind_the_last_copy_wins() -> None:
    lookup = Lookup(SOURCE)
    lookup.extend([5, 6])
    assert lookup.draft(2) == ([7, 8], 2)
    lookup.extend([7, 8, 9, 5, 6])
    assert lookup.draft(2) == ([3, 1], 2)


def test_copying_goes_on_behind_a_token_that_differs() -> None:
    lookup = Lookup(SOURCE)
    lookup.draft(9)
    lookup.extend([5, 6, 20])
    assert lookup.draft(2) == ([8, 9], 0)


def test_the_own_output_is_looked_up_too() -> None:
    lookup = Lookup([4, 1])
    lookup.extend([10, 11, 12, 13, 10, 11])
    assert lookup.draft(2) == ([12, 13], 2)


def test_nothing_is_drafted_without_a_match() -> None:
    lookup = Lookup([4])
    lookup.extend([10, 11])
    assert lookup.draft(5) == ([], 0)


def test_a_match_does_not_reach_from_the_source_into_the_output() -> None:
    lookup = Lookup([4, 9])
    lookup.extend([9, 4])
    assert all(token >= 0 for token in lookup.draft(9)[0])


def test_longest_limits_the_match() -> None:
    assert max(map(len, Lookup(SOURCE, 3).places)) == 3
    assert max(map(len, Lookup(SOURCE, 1).places)) == 1

"""Parts of beam search that need no model; ``test_generation`` compares whole searches with transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from t5edge.errors import UserError
from t5edge.runtime.generation.beam import BeamSearch, place_beams, tail_token
from t5edge.runtime.generation.options import GenerationOptions


def start(batch: int = 1, **settings: Any) -> BeamSearch:
    """A search with two beams over at most three new tokens."""
    options = GenerationOptions(**{"num_beams": 2, "max_new_tokens": 3, **settings})
    return BeamSearch(options, batch, np.random.default_rng(0))


def logits_of(*probabilities: list[float]) -> np.ndarray:
    """One row of float32 logits per list of probabilities."""
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities, np.float32))


def test_a_search_by_hand() -> None:
    """Vocabulary 0..3, end token 1. The first step opens 2 and 3; in the second, the last, 3 overtakes."""
    search = start(max_new_tokens=2, length_penalty=0.0)
    rows = search.advance(logits_of([0, 0, 0.6, 0.4], [0, 0, 0.6, 0.4]))
    assert rows.tolist() == [0, 0]
    assert search.newest.tolist() == [[2], [3]]
    search.advance(logits_of([0, 0.25, 0.25, 0.5], [0, 0.9, 0.1, 0]))
    assert search.done
    assert search.result().sequences.tolist() == [[0, 3, 1]]
    np.testing.assert_allclose(np.exp(search.finished_scores), [[0.36, 0.3]], rtol=1e-6)


def test_rows_are_those_of_the_whole_batch() -> None:
    search = start(batch=2)
    search.advance(np.tile(logits_of([0, 0, 0.6, 0.4]), (4, 1)))
    sure, unsure = [0, 0, 0.9, 0.1], [0, 0, 0.5, 0.5]
    rows = search.advance(logits_of(unsure, sure, sure, unsure))
    assert rows.tolist() == [1, 0, 2, 3]


def test_equal_scores_go_to_the_lower_token() -> None:
    search = start()
    search.advance(np.zeros((2, 9), np.float32))
    assert search.newest.tolist() == [[0], [2]], "1 is the end token"


def test_only_the_best_beams_may_end() -> None:
    """With probability 0.2 the end token is candidate 3 of 4: it neither ends nor runs on."""
    search = start()
    search.advance(logits_of([0.1, 0.2, 0.4, 0.3], [0.1, 0.2, 0.4, 0.3]))
    assert not search.is_finished.any()
    assert search.newest.tolist() == [[2], [3]]


@pytest.mark.parametrize(
    ("settings", "token"),
    [
        ({}, 1),
        ({"eos_token_id": (7, 1)}, 7),
        ({"pad_token_id": 5}, 5),
        ({"pad_token_id": None}, 1),
        ({"eos_token_id": None}, 0),
    ],
    ids=str,
)
def test_tail_token(settings: dict[str, Any], token: int) -> None:
    assert tail_token(GenerationOptions(**settings)) == token


def test_a_vocabulary_too_small_for_the_candidates_is_the_users_error() -> None:
    search = start(num_beams=2, eos_token_id=(1, 2, 3))
    with pytest.raises(UserError, match="2 beams with 3 end tokens compare 8 candidates, a vocabulary of 3"):
        search.advance(np.zeros((2, 3), np.float32))


def test_beams_that_stay_keep_their_rows() -> None:
    """Two sentences of three beams; in the first nobody continues row 1, in the second rows 3 and 4."""
    rows, places = place_beams(np.array([2, 0, 2, 5, 5, 5]))
    assert places.tolist() == [2, 0, 1, 5, 3, 4]
    assert rows.tolist() == [0, 2, 2, 5, 5, 5]


def test_beams_that_change_their_order_move_nothing() -> None:
    rows, places = place_beams(np.array([1, 0, 3, 2]))
    assert rows.tolist() == [0, 1, 2, 3]
    assert places.tolist() == [1, 0, 3, 2]


@pytest.mark.parametrize("seed", range(20))
def test_any_beam_finds_what_it_continues(seed: int) -> None:
    random = np.random.default_rng(seed)
    old = np.concatenate([4 * sentence + random.integers(0, 4, 4) for sentence in range(3)])
    rows, places = place_beams(old)
    assert rows[places].tolist() == old.tolist()
    assert sorted(places.tolist()) == list(range(12))
    assert (places // 4).tolist() == (old // 4).tolist()
    assert (rows != np.arange(12)).sum() == 12 - len(set(old.tolist()))

"""Row arithmetic against float64, full sorts and counted draws."""

from __future__ import annotations

import math

import numpy as np
import pytest

from t5edge.errors import UserError
from t5edge.runtime.generation.scores import (
    draw_candidates,
    draw_tokens,
    invert_draws,
    kth_largest,
    log_softmax,
    pick_log_probabilities,
    pick_scores,
    softmax,
    top_candidates,
)

BIG = np.random.default_rng(0).normal(0, 5, (3, 32128)).astype(np.float32)


def test_picks_are_the_scores_of_tokens_and_their_log_probabilities() -> None:
    rows, tokens = np.array([[0, 2], [1, 1]]), np.array([[5, 7], [9, 0]])
    picked = pick_scores(BIG, rows, tokens)
    assert picked.tolist() == [[BIG[0, 5], BIG[2, 7]], [BIG[1, 9], BIG[1, 0]]]
    assert np.array_equal(pick_log_probabilities(BIG, rows, tokens), log_softmax(BIG)[rows, tokens])


def test_log_softmax_is_exact_to_the_rounding_of_its_steps() -> None:
    """Values reach -45, where float32 has steps of 3.8e-6; torch's own CPU kernel is off by 5.1e-6."""
    exact = BIG.astype(np.float64)
    expected = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
    np.testing.assert_allclose(log_softmax(BIG), expected, rtol=0, atol=4e-6)
    assert log_softmax(BIG).dtype == np.float32


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_log_softmax_refuses_numbers_that_have_no_order(bad: float) -> None:
    logits = np.zeros((2, 9), np.float32)
    logits[1, 3] = bad
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        log_softmax(logits)
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        log_softmax(np.full((1, 9), -np.inf, np.float32))


def test_softmax_gives_forbidden_tokens_nothing() -> None:
    scores = np.array([1.0, -np.inf, 3.0], np.float32)
    total = math.exp(1) + math.exp(3)
    np.testing.assert_allclose(softmax(scores), [math.exp(1) / total, 0.0, math.exp(3) / total], rtol=1e-6)


@pytest.mark.parametrize("k", [1, 8, 50, 251, 252, 1000])
@pytest.mark.parametrize("kind", ["smooth", "rounded", "constant", "forbidden", "short", "ragged"])
def test_top_candidates_equal_a_full_stable_sort(k: int, kind: str) -> None:
    rows = {
        "smooth": BIG,
        "rounded": np.round(BIG),
        "constant": np.zeros((2, 32128), np.float32),
        "forbidden": np.where(BIG > 12, BIG, np.float32(-np.inf)),
        "short": BIG[:, :1000],
        "ragged": BIG[:, :32101],
    }[kind]
    values, places = top_candidates(rows, k)
    expected = np.argsort(-rows, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(rows, expected, axis=1))
    assert [kth_largest(row, k) for row in rows] == values[:, -1].tolist()


def test_draws_follow_the_probabilities() -> None:
    """40 000 draws: a share's standard error is at most 0.0025, the limit four of them."""
    probabilities = np.array([0.5, 0.0, 0.3, 0.15, 0.05])
    with np.errstate(divide="ignore"):
        scores = np.log(probabilities).astype(np.float32)
    drawn = draw_tokens(np.tile(scores, (40_000, 1)), np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / 40_000, probabilities, atol=0.01)


@pytest.mark.parametrize("kept", [1.0, 0.9, 0.1])
def test_a_number_falls_where_the_cumulative_distribution_passes_it(kept: float) -> None:
    """Over several blocks and a remainder, with and without filters, at both ends and at the steps themselves."""
    random = np.random.default_rng(1)
    scores = (random.standard_normal(5003) * 4).astype(np.float32)
    scores[random.random(5003) > kept] = -np.inf
    weights = np.exp(scores - scores.max()).astype(np.float64)
    cumulative = np.cumsum(weights) / weights.sum()
    uniforms = np.concatenate((random.random(2000), [0.0, np.nextafter(1.0, 0)], cumulative[:-1:50]))
    drawn = invert_draws(np.tile(scores, (len(uniforms), 1)), uniforms)
    assert (weights[drawn] > 0).all()
    assert (cumulative[drawn] > uniforms - 1e-12).all()
    assert (cumulative[drawn] - weights[drawn] / weights.sum() < uniforms + 1e-12).all()


def test_candidates_are_drawn_one_after_another_without_repeats() -> None:
    """The second of two draws is any other token with its probability among those left."""
    probabilities = np.array([0.5, 0.3, 0.2])
    rows = np.tile(np.log(probabilities).astype(np.float32), (40_000, 1))
    values, drawn = draw_candidates(rows, 2, np.random.default_rng(0))
    counts = np.zeros((3, 3))
    np.add.at(counts, (drawn[:, 0], drawn[:, 1]), 1 / 40_000)
    expected = probabilities[:, None] * probabilities / (1 - probabilities[:, None])
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(counts, expected, atol=0.01)
    np.testing.assert_array_equal(values, np.take_along_axis(rows, drawn, axis=1))


def test_candidates_without_probability_come_last_and_best_first() -> None:
    rows = np.array([[-np.inf, -1e9, 2.0, -np.inf, -500.0, 2.0, -2e9]], np.float32)
    for seed in range(20):
        places = draw_candidates(rows, 6, np.random.default_rng(seed))[1][0].tolist()
        assert sorted(places[:2]) == [2, 5]
        assert places[2:] == [4, 1, 6, 0]


def test_drawing_from_nothing_is_the_users_error() -> None:
    nothing = np.full((1, 5), -np.inf, np.float32)
    with pytest.raises(UserError, match="forbid every token; raise no_repeat_ngram_size"):
        draw_tokens(nothing, np.random.default_rng(0))
    with pytest.raises(UserError, match="forbid every token"):
        draw_candidates(nothing, 2, np.random.default_rng(0))

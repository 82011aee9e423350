"""Drafted search against plain search, over a model whose logits are exact: nothing but equality will do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from support.searches import generate, generate_with_scores
from support.toy_model import VOCAB, ToyModel
from t5edge.runtime.generation.drafts import Drafting
from t5edge.runtime.generation.options import GenerationOptions
from t5edge.runtime.generation.pace import Pace
from t5edge.runtime.generation.scores import softmax


class Eager(Pace):
    """Drafts as much as there is, whatever it costs."""

    def best(self, rates: Sequence[float], most: Sequence[int], rows: int) -> int:
        return max(most, default=0)


IDS = np.random.default_rng(3).integers(2, VOCAB, (4, 30))
MASK = (np.arange(30) < np.array([[30], [22], [9], [17]])).astype(np.int64)

OPTIONS = [
    {},
    {"eos_token_id": None, "max_new_tokens": 40},
    {"eos_token_id": (1, 7)},
    {"min_new_tokens": 15},
    {"max_new_tokens": 3},
    {"no_repeat_ngram_size": 2},
    {"repetition_penalty": 1.7},
    {"forced_bos_token_id": 9, "forced_eos_token_id": 1, "max_new_tokens": 12},
    {"do_sample": True, "seed": 4},
    {"do_sample": True, "top_k": 5, "temperature": 2.0, "num_return_sequences": 2},
]


def run(model: ToyModel, rows: int, drafting: Drafting | None = None, **settings: Any) -> np.ndarray:
    options = GenerationOptions(**{"max_new_tokens": 30, **settings})
    return generate(model, IDS[:rows], MASK[:rows], options, None, drafting)


@pytest.mark.parametrize("differ", [True, False])
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("settings", OPTIONS)
def test_tokens_are_those_of_plain_search(settings: dict[str, Any], rows: int, differ: bool) -> None:
    plain, model = ToyModel(copying=True), ToyModel(copying=True, rows_differ=differ)
    expected = run(plain, rows, **settings)
    found = run(model, rows, Drafting(Eager()), prompt_lookup_num_tokens=6, **settings)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("differ", [True, False])
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("settings", [entry for entry in OPTIONS if "do_sample" not in entry])
def test_tokens_with_an_assistant_are_those_of_plain_search(settings: dict[str, Any], rows: int, differ: bool) -> None:
    expected = run(ToyModel(), rows, **settings)
    assistant = Drafting(Eager(), ToyModel(blur=0.5, rows_differ=differ))
    assert np.array_equal(run(ToyModel(rows_differ=differ), rows, assistant, **settings), expected)


def test_copied_tokens_take_fewer_passes() -> None:
    plain, model = ToyModel(copying=True), ToyModel(copying=True)
    run(plain, 1, eos_token_id=None)
    run(model, 1, Drafting(Eager()), eos_token_id=None, prompt_lookup_num_tokens=6)
    assert plain.steps == 30
    assert model.steps <= 12


def test_a_perfect_assistant_is_right_every_time() -> None:
    model = ToyModel()
    found = run(model, 1, Drafting(Eager(), ToyModel()), eos_token_id=None, num_assistant_tokens=5)
    assert np.array_equal(found, run(ToyModel(), 1, eos_token_id=None))
    assert model.steps <= 30 // 6


@pytest.mark.parametrize("differ", [True, False])
def test_an_assistant_that_samples_leaves_the_distribution_as_it_is(differ: bool) -> None:
    """8,000 rows draw two tokens; each count is within five standard deviations of what plain sampling has."""
    count, settings = 8_000, {"do_sample": True, "top_k": 6, "eos_token_id": None, "max_new_tokens": 2}
    ids = np.full((count, 2), 5)
    options = GenerationOptions(**settings, num_assistant_tokens=2)
    model, assistant = ToyModel(rows_differ=differ, scale=1.0), ToyModel(blur=0.7, scale=1.0)
    found = generate(model, ids, np.ones_like(ids), options, None, Drafting(Eager(), assistant))
    first = top(model.table[0, 0], 6)
    check_counts(found[:, 1], first, count)
    for token in np.argsort(-first)[:2]:
        followed = found[found[:, 1] == token]
        check_counts(followed[:, 2], top(model.table[0, token], 6), len(followed))


def top(logits: np.ndarray, k: int) -> np.ndarray:
    """Probabilities of the ``k`` likeliest tokens."""
    return softmax(np.where(logits < np.sort(logits)[-k], -np.inf, logits))


def check_counts(tokens: np.ndarray, probabilities: np.ndarray, count: int) -> None:
    expected, found = count * probabilities, np.bincount(tokens, minlength=VOCAB)
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - probabilities)) + 1e-9).all()


@pytest.mark.parametrize("rows", [1, 3])
def test_tokens_are_told_in_order(rows: int) -> None:
    told: list[tuple[int, list[int]]] = []
    options = GenerationOptions(max_new_tokens=25, prompt_lookup_num_tokens=4)
    found = generate(
        ToyModel(copying=True),
        IDS[:rows],
        MASK[:rows],
        options,
        lambda step, tokens: told.append((step, tokens.tolist())),
        Drafting(Eager()),
    )
    assert [step for step, _ in told] == list(range(found.shape[1] - 1))
    assert np.array_equal(np.array([tokens for _, tokens in told]).T, found[:, 1:])


@pytest.mark.parametrize("differ", [True, False])
@pytest.mark.parametrize("settings", [{}, {"no_repeat_ngram_size": 2}, {"do_sample": True, "top_k": 5, "seed": 4}])
def test_scores_are_those_of_plain_search_behind_the_end_too(settings: dict[str, Any], differ: bool) -> None:
    plain = GenerationOptions(max_new_tokens=25, **settings)
    options = GenerationOptions(max_new_tokens=25, prompt_lookup_num_tokens=4, **settings)
    expected = generate_with_scores(ToyModel(copying=True), IDS, MASK, plain)
    model = ToyModel(copying=True, rows_differ=differ)
    found = generate_with_scores(model, IDS, MASK, options, None, Drafting(Eager()))
    assert np.array_equal(found.sequences, expected.sequences)
    assert (np.cumsum(found.sequences[:, 1:-1] == 1, axis=1) > 0).any(), "a row that ends before the others"
    np.testing.assert_array_equal(found.transition_scores, expected.transition_scores)


def test_a_logit_that_is_not_a_number_stops() -> None:
    model = ToyModel()
    model.table[...] = np.nan
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        run(model, 1, Drafting(Eager()), prompt_lookup_num_tokens=3)

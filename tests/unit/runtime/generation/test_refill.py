from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from support.searches import generate, generate_with_scores
from support.toy_model import ToyModel, ToyState
from t5edge.runtime.generation.drafts import Drafting
from t5edge.runtime.generation.options import GenerationOptions
from t5edge.runtime.generation.pace import Pace
from t5edge.runtime.generation.refill import Prompt, RefillModel, stream
from t5edge.runtime.generation.scores import Generated, pick_log_probabilities


class ToyRefill(ToyModel):
    """Rows that begin anew."""

    def __init__(self) -> None:
        super().__init__(copying=True)
        self.widths: list[int] = []

    def cross(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> dict[str, Any]:
        """Sources as they are."""
        return {"sources": super().encode(input_ids, attention_mask).sources}

    def start(self, feeds: dict[str, Any], rows: int) -> ToyState:
        """A state with nothing fed."""
        return ToyState(list(feeds["sources"]), [[] for _ in range(rows)])

    def refill(self, state: ToyState, row: int, feeds: dict[str, Any], place: int) -> None:
        """Another source."""
        state.sources[row], state.fed[row] = feeds["sources"][place], []

    def take(self, state: ToyState, rows: np.ndarray) -> ToyState:
        """These rows."""
        return ToyState([state.sources[row] for row in rows], [state.fed[row] for row in rows])

    def step(self, state: ToyState, tokens: np.ndarray) -> np.ndarray:
        """As ever, counted."""
        self.widths.append(len(tokens))
        return super().step(state, tokens)


def prompts(count: int) -> list[Prompt]:
    """Prompts of 1 to 24 tokens; the end token stands somewhere in most, and answers copy."""
    random = np.random.default_rng(8)
    return [Prompt(number, random.integers(1, 24, random.integers(1, 25)).tolist()) for number in range(count)]


def alone(prompt: Prompt, **settings: Any) -> list[int]:
    """The answer to one prompt, drawn with the same seed."""
    ids = np.array([prompt.ids])
    options = GenerationOptions(max_new_tokens=25, **settings)
    return generate(ToyModel(copying=True), ids, np.ones_like(ids), options)[0].tolist()


def tokens(found: Iterable[tuple[int, Generated]]) -> dict[int, list[int]]:
    return {number: row.sequences[0].tolist() for number, row in found}


@pytest.mark.parametrize("settings", [{}, {"no_repeat_ngram_size": 2}, {"prompt_lookup_num_tokens": 4}])
@pytest.mark.parametrize("count", [1, 5, 43])
def test_every_prompt_is_answered_once_as_if_alone(count: int, settings: dict[str, Any]) -> None:
    model, wanted = ToyRefill(), prompts(count)
    assert isinstance(model, RefillModel)
    options = GenerationOptions(max_new_tokens=25, **settings)
    found = list(stream(model, iter(wanted), options, 5, Drafting(Pace())))
    assert sorted(number for number, _ in found) == list(range(count))
    answers = tokens(found)
    assert [answers[prompt.number] for prompt in wanted] == [alone(prompt, **settings) for prompt in wanted]


@pytest.mark.parametrize("settings", [{}, {"prompt_lookup_num_tokens": 4}])
def test_scores_are_those_of_every_prompt_alone(settings: dict[str, Any]) -> None:
    wanted, options = prompts(20), GenerationOptions(max_new_tokens=25, **settings)
    found = dict(stream(ToyRefill(), wanted, options, 5, Drafting(Pace()), pick_log_probabilities))
    for prompt in wanted:
        ids = np.array([prompt.ids])
        alone = generate_with_scores(
            ToyModel(copying=True), ids, np.ones_like(ids), GenerationOptions(max_new_tokens=25), normalize_logits=True
        )
        assert np.array_equal(found[prompt.number].transition_scores, alone.transition_scores)


def test_rows_stay_busy_and_the_rest_is_packed() -> None:
    """Answers have unlike lengths: batches that wait for their longest row would take half as many passes more."""
    model, wanted = ToyRefill(), prompts(43)
    answers = dict(stream(model, iter(wanted), GenerationOptions(max_new_tokens=25), 5, Drafting(Pace())))
    needed = sum(row.sequences.shape[1] - 1 for row in answers.values())
    assert sum(model.widths) <= 1.15 * needed
    assert model.widths[0] == 5
    assert model.widths[-1] <= 2
    waiting = [
        max(answers[number].sequences.shape[1] - 1 for number in range(start, min(start + 5, 43)))
        for start in range(0, 43, 5)
    ]
    assert len(model.widths) < 0.8 * sum(waiting)


def test_draws_hang_on_the_seed_and_the_number_alone() -> None:
    options = GenerationOptions(max_new_tokens=25, do_sample=True, temperature=2.0, seed=3)
    wanted = prompts(20)
    forward = tokens(stream(ToyRefill(), wanted, options, 5, Drafting(Pace())))
    backward = tokens(stream(ToyRefill(), wanted[::-1], options, 3, Drafting(Pace())))
    assert [forward[number] for number in range(20)] == [backward[number] for number in range(20)]
    other = tokens(
        stream(ToyRefill(), wanted, GenerationOptions(max_new_tokens=25, do_sample=True, seed=4), 5, Drafting(Pace()))
    )
    assert any(forward[number] != other[number] for number in range(20))


def test_prompts_are_read_as_they_are_needed() -> None:
    read: list[int] = []

    def endless() -> Any:
        for number in range(10_000):
            read.append(number)
            yield Prompt(number, [2, 3, 1])

    answers = stream(ToyRefill(), endless(), GenerationOptions(max_new_tokens=4), 5, Drafting(Pace()))
    for _ in range(12):
        next(answers)
    assert len(read) <= 25


def test_no_prompts_no_answers() -> None:
    assert list(stream(ToyRefill(), [], GenerationOptions(), 5, Drafting(Pace()))) == []

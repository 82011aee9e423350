from __future__ import annotations

import numpy as np
import pytest

from t5edge.runtime.answers import Answer, answer_length
from t5edge.tools.answers import answer_fields, answer_lines


def answer(text: str, *scores: float, beam: float | None = None) -> Answer:
    return Answer(text, tuple("abc"[: len(scores)]), np.array(scores, np.float32), beam)


@pytest.mark.parametrize(
    ("tokens", "ends", "length"),
    [([5, 1, 0, 0], (1,), 2), ([5, 6], (1,), 2), ([1], (1,), 1), ([5, 7, 1], (1, 7), 2), ([5, 1], (), 2)],
)
def test_an_answer_ends_with_its_first_end_token(tokens: list[int], ends: tuple[int, ...], length: int) -> None:
    assert answer_length(np.array(tokens), ends) == length


def test_an_answer_scores_the_sum_of_its_tokens() -> None:
    assert answer("x", -0.5, -0.25).score == -0.75


def test_fields_are_values_of_one_answer_and_lists_of_several() -> None:
    one = {"target": "x", "score": -0.1, "tokens": ["a"], "token_scores": [-0.1]}
    assert answer_fields([answer("x", -0.1)]) == one
    assert answer_fields([answer("x", -0.1, beam=-2.0)]) == {**one, "beam_score": -2.0}
    several = answer_fields([answer("x", -0.1), answer("y", 0.0, -1.0)])
    assert several == {
        "target": ["x", "y"],
        "score": [-0.1, -1.0],
        "tokens": [["a"], ["a", "b"]],
        "token_scores": [[-0.1], [0.0, -1.0]],
    }
    assert answer_fields(["x"]) == {"target": "x"}
    assert str(answer_fields([answer("x", -0.0)])["token_scores"]) == "[0.0]"


def test_lines_are_the_text_and_below_it_its_tokens() -> None:
    assert answer_lines("x") == ["x"]
    assert answer_lines(answer("x", -0.5, -0.25)) == ["-0.7500\tx", "\t-0.5000\ta", "\t-0.2500\tb"]

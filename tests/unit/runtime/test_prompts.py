"""Names of learnt prompts as ids in front of a source; numpy alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from support.tiny_models import find_tiny_model
from t5edge.bundle.records import PREFIX_TUNING, PromptFacts
from t5edge.errors import UserError
from t5edge.runtime.prompts import chosen_ids, with_prompts

FACTS = find_tiny_model("t5-tiny").architecture
SIZE = FACTS.vocab_size
ARCHITECTURE = replace(FACTS, virtual_tokens=3, prefix_lengths=(6,))
PROMPTS = (
    PromptFacts("two", "./two", None, "PROMPT_TUNING", "0", 2, SIZE),
    PromptFacts("past", "someone/past", "v1", PREFIX_TUNING, "1", 6, -1),
    PromptFacts("one", "./one", None, "P_TUNING", "2", 1, SIZE + 2),
)


def test_a_prompt_is_spelled_as_the_command_line_takes_it() -> None:
    assert [prompt.spelled for prompt in PROMPTS[:2]] == ["two=./two", "past=someone/past@v1"]
    assert PROMPTS[0].moved(-3).ids == (SIZE - 3, SIZE - 2)
    assert PROMPTS[1].moved(-3) is PROMPTS[1]


def test_one_name_for_all_or_one_for_each() -> None:
    assert chosen_ids(PROMPTS, "two", 2) == [(SIZE, SIZE + 1)] * 2
    assert chosen_ids(PROMPTS, ["none", "past", "one"], 3) == [(), (-1,), (SIZE + 2,)]
    assert chosen_ids(PROMPTS[:1], None, 1) == [(SIZE, SIZE + 1)], "the only one"
    assert chosen_ids((), None, 2) == chosen_ids((), "none", 2) == [(), ()]


@pytest.mark.parametrize(
    ("prompts", "chosen", "said"),
    [
        (PROMPTS, None, "several prompts; name one of two, past, one, or 'none'"),
        (PROMPTS, "three", "no prompt 'three'; it has two, past, one"),
        ((), "two", "no prompt 'two'; it has none"),
        (PROMPTS, ["two", "one"], "2 prompts for 3 sources"),
    ],
)
def test_other_names_are_refused(prompts: tuple[PromptFacts, ...], chosen: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        chosen_ids(prompts, chosen, 3)  # type: ignore[arg-type]


def test_prompts_of_unlike_length_stand_in_front_and_padding_behind() -> None:
    ids, mask = with_prompts(
        ARCHITECTURE,
        PROMPTS,
        [[5, 1, 0], [0, 6, 1], [7, 8, 1]],
        [[1, 1, 0], [0, 1, 1], [1, 1, 1]],
        ["two", "past", "none"],
    )
    assert ids.tolist() == [[SIZE, SIZE + 1, 5, 1, 0], [-1, 0, 6, 1, 0], [7, 8, 1, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 0], [0, 0, 1, 1, 0], [1, 1, 1, 0, 0]]
    assert ids.dtype == mask.dtype == np.int64


def test_ids_of_prompts_are_taken_as_they_are() -> None:
    for chosen in (None, "none"):
        ids, mask = with_prompts(ARCHITECTURE, PROMPTS, [[-1, 5, 1], [SIZE, 5, 1]], None, chosen)
        assert (ids.tolist(), mask.tolist()) == ([[-1, 5, 1], [SIZE, 5, 1]], [[0, 1, 1], [1, 1, 1]])
    with pytest.raises(UserError, match="prompts already"):
        with_prompts(ARCHITECTURE, PROMPTS, [[-1, 5, 1]], None, "past")
    for ids in ([[-2, 5]], [[SIZE + 3, 5]]):
        with pytest.raises(UserError, match="the vocabulary has"):
            with_prompts(ARCHITECTURE, PROMPTS, ids, None, None)

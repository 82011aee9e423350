from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from support.toy_model import ToyModel
from t5edge.errors import UserError
from t5edge.runtime.generation.drafts import AssistantDrafter, Drafting, LookupDrafter
from t5edge.runtime.generation.options import GenerationOptions
from t5edge.runtime.generation.pace import Pace

IDS, MASK = np.array([[5, 6, 7, 1, 0], [9, 8, 7, 6, 1]]), np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])


def options(**given: Any) -> GenerationOptions:
    return GenerationOptions(max_new_tokens=8, **given)


class Eager(Pace):
    """Drafts as much as there is, whatever it costs."""

    def best(self, rates: Sequence[float], most: Sequence[int], rows: int) -> int:
        return max(most, default=0)


def output(*rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of tokens behind the start token, and their lengths."""
    found = np.zeros((len(rows), 9), np.int64)
    for row, tokens in enumerate(rows):
        found[row, 1 : 1 + len(tokens)] = tokens
    return found, np.array([1 + len(tokens) for tokens in rows])


def test_rows_are_looked_up_in_their_own_source_without_padding() -> None:
    drafter = Drafting(Eager()).drafter(ToyModel(), IDS, MASK, options(prompt_lookup_num_tokens=3))
    assert drafter is not None
    draft = drafter.draft(*output([5, 6], [9, 8]), np.array([6, 6]))
    assert draft.tokens.tolist() == [[7, 1, 0], [7, 6, 1]]
    assert draft.counts.tolist() == [2, 3]


def test_a_row_that_has_ended_gets_no_draft() -> None:
    drafter = LookupDrafter([[5, 6, 7], [9, 8, 7]], options(prompt_lookup_num_tokens=3), Eager())
    assert drafter.draft(*output([5], [9]), np.array([0, 6])).counts.tolist() == [0, 2]


def test_a_row_can_start_anew_on_another_source() -> None:
    drafter = LookupDrafter([[5, 6, 7], [9, 8, 7]], options(prompt_lookup_num_tokens=3), Eager())
    drafter.draft(*output([5], [9]), np.array([6, 6]))
    drafter.restart(0, [3, 4])
    assert drafter.draft(*output([], [9, 8]), np.array([6, 6])).tokens.tolist() == [[3, 4], [7, 0]]
    drafter.take(np.array([1]))
    assert drafter.draft(*output([9, 8]), np.array([6])).tokens.tolist() == [[7]]


def test_what_is_never_accepted_is_drafted_less_and_less() -> None:
    drafter, counts = LookupDrafter([[5, 6, 7, 8]], options(prompt_lookup_num_tokens=3), Pace()), []
    for length in range(1, 60):
        draft = drafter.draft(np.full((1, 61), 20), np.array([length]), np.array([5]))
        drafter.learn(np.zeros(1, np.int64), draft.counts, 0.01 * (1 + 0.3 * draft.counts[0]))
        counts.append(int(draft.counts[0]))
    assert counts[0] >= 1
    assert sum(counts[30:]) <= 6


def test_going_on_behind_a_copy_is_counted_apart_from_guessing() -> None:
    pace = Eager()
    drafter = LookupDrafter([[5, 6, 7, 8, 9, 10]], options(prompt_lookup_num_tokens=3), pace)
    for text, accepted in (([], 2), ([5, 6, 20], 0), ([5, 6, 20, 21], 1)):
        draft = drafter.draft(*output(text), np.array([5]))
        drafter.learn(np.array([accepted]), draft.counts, 0.01)
    assert {name: kind.tried > 0 for name, kind in pace.kinds.items()} == {"cold": True, "resumed": True}
    assert pace.kind("cold").accepted > 2.9
    assert pace.kind("resumed").accepted == 0


@pytest.mark.parametrize("differ", [True, False])
def test_an_assistant_drafts_what_it_would_generate(differ: bool) -> None:
    """Also behind tokens that were not the drafted ones, and with rows of unlike lengths."""
    chosen = options(num_assistant_tokens=3, eos_token_id=None)
    drafter = AssistantDrafter(ToyModel(rows_differ=differ), IDS, MASK, chosen, Eager())
    table = ToyModel().table
    for rows in ([[4], [9]], [[4, 11], [9, 3]], [[4, 11, 2], [9, 3, int(table[9, 3].argmax()), 7]]):
        found = drafter.draft(*output(*rows), np.array([5, 5]))
        for row, tokens in enumerate(rows):
            text = [0, 0, *tokens]
            for token in found.tokens[row]:
                assert token == table[text[-2], text[-1]].argmax()
                text.append(int(token))
        drafter.learn(np.zeros(2, np.int64), found.counts, 0.01)


def test_a_draft_ends_with_the_end_token() -> None:
    model = ToyModel()
    model.table[:, 4, 1] = 90
    drafter = AssistantDrafter(model, IDS[:1], MASK[:1], options(), Eager())
    draft = drafter.draft(*output([4]), np.array([5]))
    assert draft.counts.tolist() == [1]
    assert draft.tokens[0, 0] == 1


@pytest.mark.parametrize(
    ("assistant", "settings", "message"),
    [
        (None, {"prompt_lookup_num_tokens": 3, "num_beams": 2}, "beams take no drafted tokens"),
        (ToyModel(), {"prompt_lookup_num_tokens": 3}, "give one of them"),
        (ToyModel(), {"num_beams": 2}, "beams take no drafted tokens"),
    ],
)
def test_what_does_not_go_together_is_refused(assistant: Any, settings: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Drafting(Pace(), assistant).drafter(ToyModel(), IDS, MASK, options(**settings))


def test_a_backend_that_cannot_forget_is_refused() -> None:
    with pytest.raises(UserError, match="takes no drafted tokens"):
        Drafting(Pace()).drafter(object(), IDS, MASK, options(prompt_lookup_num_tokens=3))


def test_plain_search_has_no_drafter() -> None:
    assert Drafting(Pace()).drafter(object(), IDS, MASK, options()) is None


def test_where_no_draft_pays_the_assistant_does_not_even_read_the_source() -> None:
    class Never(Pace):
        def best(self, rates: Sequence[float], most: Sequence[int], rows: int) -> int:
            return 0

    drafter = AssistantDrafter(ToyModel(), IDS, MASK, options(num_assistant_tokens=3), Never())
    assert drafter.draft(*output([4], [9]), np.array([5, 5])).counts.tolist() == [0, 0]
    assert drafter.state is None

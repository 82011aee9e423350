"""Learnt prompts by their names: the ids that stand in front of a source.

    ids [5, 7, 1]  prompt "spell" of two virtual tokens  ->  [32128, 32129, 5, 7, 1]   mask [1, 1, 1, 1, 1]
    ids [5, 7, 1]  prompt "sum", a prefix                ->  [-1, 5, 7, 1]             mask [0, 1, 1, 1]

A source that has such ids already is taken as it is. Prompts stand in front of padding on the left too, as in peft.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from t5edge.bundle.records import NO_PROMPT, PromptFacts
from t5edge.errors import UserError
from t5edge.runtime.inputs import as_ids, as_mask

if TYPE_CHECKING:
    from t5edge.bundle.architecture import Architecture
    from t5edge.runtime.generation.step import Tokens

Prompts = str | Sequence[str] | None
"""One name for every source, or one for each; ``none`` for no prompt. None: the only one there is."""


def chosen_ids(prompts: Sequence[PromptFacts], chosen: Prompts, rows: int) -> list[tuple[int, ...]]:
    """The ids in front of each of ``rows`` sources.

    Raises:
        UserError: a name that the bundle does not have, as many names as rows are not, or none where it has several.
    """
    known = {NO_PROMPT: (), **{prompt.name: prompt.ids for prompt in prompts}}
    names = ", ".join(name for name in known if name != NO_PROMPT)
    if chosen is None:
        if len(prompts) > 1:
            raise UserError(f"the bundle has several prompts; name one of {names}, or '{NO_PROMPT}' for no prompt.")
        chosen = prompts[0].name if prompts else NO_PROMPT
    listed = [chosen] * rows if isinstance(chosen, str) else list(chosen)
    if len(listed) != rows:
        raise UserError(f"{len(listed)} prompts for {rows} sources; give one for all, or one for each.")
    for name in listed:
        if name not in known:
            has = f"it has {names}" if names else "it has none"
            raise UserError(f"the bundle has no prompt {name!r}; {has}, and '{NO_PROMPT}' means no prompt.")
    return [known[name] for name in listed]


def with_prompts(
    architecture: Architecture,
    prompts: Sequence[PromptFacts],
    input_ids: Any,
    attention_mask: Any,
    chosen: Prompts,
) -> tuple[Tokens, Tokens]:
    """Checked ids and mask, int64 [batch, source], with the chosen prompts in front; see the module.

    Raises:
        UserError: see ``chosen_ids``, ``as_ids`` and ``as_mask``; a name for a source that has prompt ids already.
    """
    ids = as_ids("input_ids", input_ids, architecture.source_ids, -len(architecture.prefix_lengths))
    mask = as_mask(attention_mask, ids)
    if ((ids < 0) | (ids >= architecture.vocab_size)).any():
        if chosen not in (None, NO_PROMPT):
            raise UserError("input_ids hold ids of prompts already; leave out prompt.")
        return ids, np.where(ids < 0, 0, mask)
    fronts = chosen_ids(prompts, chosen, len(ids))
    if not any(fronts):
        return ids, mask
    width = ids.shape[1] + max(map(len, fronts))
    found, seen = np.zeros((2, len(ids), width), np.int64)
    found[:] = architecture.pad_token_id
    for row, front in enumerate(fronts):
        end = len(front) + ids.shape[1]
        found[row, :end], seen[row, :end] = [*front, *ids[row]], [*(token >= 0 for token in front), *mask[row]]
    return found, seen

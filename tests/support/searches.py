"""A search as most tests ask for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from t5edge.runtime.generation.scores import Generated, pick_log_probabilities, pick_scores
from t5edge.runtime.generation.search import OnToken, run_search
from t5edge.runtime.generation.step import Scores, Tokens


def generate(
    model: Any, ids: Tokens, mask: Tokens, options: Any, on_token: OnToken | None = None, drafting: Any = None
) -> Tokens:
    """Tokens alone."""
    return run_search(model, ids, mask, options, on_token, None, drafting).sequences


def generate_with_scores(
    model: Any,
    ids: Tokens,
    mask: Tokens,
    options: Any,
    on_token: OnToken | None = None,
    drafting: Any = None,
    *,
    normalize_logits: bool = False,
) -> Generated:
    """With what every token scored: ``normalize_logits`` makes it a log-probability without beams too."""
    pick = pick_log_probabilities if normalize_logits else pick_scores
    return run_search(model, ids, mask, options, on_token, pick, drafting)


def logits_in_steps(model: Any, ids: Tokens, mask: Tokens, targets: Tokens, lengths: Iterable[int]) -> Scores:
    """Logits of ``targets``, fed in steps of ``lengths``, which add up to all of them."""
    state, found, begin = model.encode(ids, mask), [], 0
    for length in lengths:
        found.append(model.step(state, np.ascontiguousarray(targets[:, begin : begin + length])).copy())
        begin += length
    assert begin == targets.shape[1]
    return np.concatenate(found, axis=1)

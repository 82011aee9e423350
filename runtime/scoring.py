"""``score``, ``score_text`` and ``score_first`` of a loaded bundle: many rows in batches of bounded size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from t5edge.bundle.records import NO_PROMPT
from t5edge.errors import UserError
from t5edge.runtime.batches import BATCH_TOKENS, LoadedModel, batches, check_pairs, listed
from t5edge.runtime.generation.targets import LOGITS, TargetScores, score_choices, score_targets
from t5edge.runtime.inputs import IGNORED, as_ids, as_labels, check_memory

if TYPE_CHECKING:
    from t5edge.runtime.generation.options import GenerationOptions
    from t5edge.runtime.generation.step import Scores, Tokens
    from t5edge.runtime.prompts import Prompts


class ScoredModel(LoadedModel, Protocol):
    """What is needed of a loaded bundle."""

    def options(self) -> GenerationOptions: ...

    def source(self, input_ids: Any, attention_mask: Any, prompt: Prompts) -> tuple[Tokens, Tokens]: ...


def score_ids(model: ScoredModel, ids: Tokens, mask: Tokens, targets: Tokens) -> TargetScores:
    """See ``BundleModel.score``; ``ids``, ``mask`` int64 [batch, source], ``targets`` int64 [batch, target]."""
    check_pairs("target_ids", len(targets), "input_ids", len(ids))
    options = model.options()
    most = max(1, min(BATCH_TOKENS // max(ids.shape[1], targets.shape[1]), _most_rows(model)))
    positions = max(1, LOGITS // (min(most, len(ids)) * model.vocab_size))
    found = []
    for start in range(0, len(ids), most):
        rows = slice(start, start + most)
        check_memory(model.architecture, len(ids[rows]), ids.shape[1], targets.shape[1])
        found.append(score_targets(model.step_model, ids[rows], mask[rows], targets[rows], options, positions))
    return TargetScores(targets, np.concatenate(found))


def score_rows(model: ScoredModel, rows: Sequence[list[int]], answers: Sequence[list[int]]) -> TargetScores:
    """See ``BundleModel.score_text``; ids of sources and of targets."""
    shape = (len(rows), max(1, *map(len, answers)))
    found = TargetScores(np.full(shape, IGNORED, np.int64), np.zeros(shape, np.float32))
    for index, answer in enumerate(answers):
        found.target_ids[index, : len(answer)] = answer
    as_labels("targets", found.target_ids, model.vocab_size)
    lengths = [max(map(len, pair)) for pair in zip(rows, answers, strict=True)]
    for batch in batches(lengths, BATCH_TOKENS):
        longest = max(len(answers[index]) for index in batch)
        ids, mask = model.tokenizer.pad([rows[index] for index in batch])
        scores = score_ids(model, *model.source(ids, mask, NO_PROMPT), found.target_ids[batch, :longest])
        found.token_scores[batch, :longest] = scores.token_scores
    return found


def score_first_tokens(model: ScoredModel, rows: Sequence[list[int]], choices: Sequence[str | int]) -> Scores:
    """See ``BundleModel.score_first``; ids of sources."""
    options = model.options()
    tokens = [[_token(model, choice, options.eos) for choice in listed(choices)]]
    among = as_ids("choices", tokens, model.vocab_size)
    found = np.empty((len(rows), among.size), np.float32)
    least = -(-BATCH_TOKENS // _most_rows(model))  # as many tokens does a row count at least
    for batch in batches([max(least, len(row)) for row in rows], BATCH_TOKENS):
        ids, mask = model.source(*model.tokenizer.pad([rows[index] for index in batch]), NO_PROMPT)
        check_memory(model.architecture, len(ids), ids.shape[1], 1)
        found[batch] = score_choices(model.step_model, ids, mask, among[0], options)
    return found


def _most_rows(model: ScoredModel) -> int:
    """Rows whose logits of one position stay within ``LOGITS``, and that engines take."""
    limits = getattr(model.step_model, "limits", None)
    return max(1, min(LOGITS // model.vocab_size, limits.max_batch if limits else LOGITS))


def _token(model: ScoredModel, choice: str | int, ends: tuple[int, ...]) -> int:
    if not isinstance(choice, str):
        return choice
    ids = [token for token in model.tokenizer.ids([choice])[0] if token not in ends]
    if len(ids) == 1:
        return ids[0]
    token = model.tokenizer.vocabulary.get(choice)
    if token is None:
        raise UserError(f"the choice {choice!r} has {len(ids)} tokens; give one of a single token, or its id.")
    return token

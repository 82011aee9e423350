"""What a model thinks of targets that it did not choose: teacher-forced log-probabilities.

    decoder input : start   t0   t1   t2          targets : t0   t1   t2   end
    one run       : as many columns as ``LOGITS`` allows -> logits [rows, columns, vocab] -> one number per token

Works with every ``StepModel``; logits of a run are gone before the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from t5edge.runtime.generation.options import GenerationOptions
from t5edge.runtime.generation.scores import check_logits, log_softmax, pick_log_probabilities
from t5edge.runtime.generation.step import Scores, StateT, StepModel, Tokens
from t5edge.runtime.inputs import IGNORED

LOGITS = 1 << 26
"""Most logits of one decoder run, 256 MiB: 32 rows of 65 tokens with a vocabulary of 32,128, of 8 with 250,112."""

FIRST = np.zeros(1, np.int64)


@dataclass(frozen=True)
class TargetScores:
    """Natural-log probabilities of targets.

    Attributes:
        target_ids: int64 [batch, target], ``IGNORED`` (-100) where nothing counts.
        token_scores: float32 [batch, target], each given the source and the tokens before; 0 where nothing counts.
    """

    target_ids: Tokens
    token_scores: Scores

    @property
    def sequences_scores(self) -> Scores:
        """Of whole targets, float32 [batch]: the sums of their tokens'."""
        sums: Scores = self.token_scores.sum(axis=1)
        return sums


def score_targets(
    model: StepModel[StateT],
    input_ids: Tokens,
    attention_mask: Tokens,
    targets: Tokens,
    options: GenerationOptions,
    most: int,
) -> Scores:
    """Natural-log probabilities float32 [rows, target] of ``targets`` int64, 0 where they are ``IGNORED``.

    ``input_ids``, ``attention_mask``: int64 [rows, source]; ``most``: target positions of one decoder run.
    Raises ``FloatingPointError`` for NaN and infinite logits.
    """
    counted = targets != IGNORED
    fed = np.full_like(targets, options.decoder_start_token_id)
    fed[:, 1:] = np.where(counted, targets, options.pad)[:, :-1]
    state = model.encode(input_ids, attention_mask)
    scores = np.zeros(targets.shape, np.float32)
    for start in range(0, targets.shape[1], most):
        part = slice(start, start + most)
        logits = model.step(state, np.ascontiguousarray(fed[:, part]))
        for row, column in np.argwhere(counted[:, part]):  # one at a time: its numbers stay in the processor's cache
            token = targets[row, part][column : column + 1]
            scores[row, start + column] = pick_log_probabilities(logits[row, column][None], FIRST, token)[0]
    return scores


def score_choices(
    model: StepModel[StateT],
    input_ids: Tokens,
    attention_mask: Tokens,
    choices: Tokens,
    options: GenerationOptions,
) -> Scores:
    """Natural-log probabilities of the first token among ``choices`` int64 [n] alone: float32 [rows, n].

    ``input_ids``, ``attention_mask``: int64 [rows, source]. Raises ``FloatingPointError`` for NaN and infinite logits.
    """
    state = model.encode(input_ids, attention_mask)
    start = np.full((len(input_ids), 1), options.decoder_start_token_id, np.int64)
    logits = model.step(state, start)[:, 0]
    check_logits(logits.max(axis=-1))
    return log_softmax(logits[:, choices])

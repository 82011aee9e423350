"""Any number of rows on engines that take a few: the rows go through in parts, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from t5edge.runtime.generation.step import Scores, Tokens


@dataclass
class State:
    """The states of the parts, and the rows [start, stop) of each."""

    parts: list[tuple[Any, int, int]]


class InParts:
    """A ``StepModel`` over another one that takes ``max_batch`` rows, copies of a sentence included.

    A sentence's copies stay together, so one with more copies than ``max_batch`` is refused by the model as before.
    """

    def __init__(self, model: Any, max_batch: int) -> None:
        self._model, self._max_batch = model, max_batch

    def encode(self, input_ids: Tokens, attention_mask: Tokens, copies: int = 1) -> State:
        """See ``StepModel.encode``."""
        most = max(1, self._max_batch // copies)
        return State(
            [
                (self._model.encode(ids, mask, copies), start * copies, (start + len(ids)) * copies)
                for start, ids, mask in _parts(input_ids, attention_mask, most)
            ]
        )

    def step(self, state: State, tokens: Tokens) -> Scores:
        """See ``StepModel.step``."""
        return np.concatenate([self._model.step(part, tokens[start:stop]) for part, start, stop in state.parts])

    def best(self, state: State, tokens: Tokens) -> tuple[Tokens, Scores]:
        """See ``EngineModel.best``."""
        found = [self._model.best(part, tokens[start:stop]) for part, start, stop in state.parts]
        best_tokens, scores = (np.concatenate(column) for column in zip(*found, strict=True))
        return best_tokens, scores

    def reorder(self, state: State, rows: Tokens) -> None:
        """See ``StepModel.reorder``; a row continues one of its own sentence, so of its own part."""
        for part, start, stop in state.parts:
            self._model.reorder(part, rows[start:stop] - start)

    def hidden_and_cross(self, input_ids: Tokens, attention_mask: Tokens) -> dict[str, np.ndarray]:
        """See ``EngineModel.hidden_and_cross``."""
        found = [
            self._model.hidden_and_cross(ids, mask)
            for _, ids, mask in _parts(input_ids, attention_mask, self._max_batch)
        ]
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def _parts(input_ids: Tokens, attention_mask: Tokens, most: int) -> list[tuple[int, Tokens, Tokens]]:
    """First row, ids and mask of every part."""
    starts = range(0, len(input_ids), most)
    return [(start, input_ids[start : start + most], attention_mask[start : start + most]) for start in starts]

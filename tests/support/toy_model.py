"""A ``StepModel`` over numpy whose logits follow from the last tokens: it needs no weights and no time."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from t5edge.runtime.generation.step import Scores, Tokens

VOCAB = 24


@dataclass
class ToyState:
    """What every row has been fed, and the source that it goes back to."""

    sources: list[list[int]]
    fed: list[list[int]] = field(default_factory=list)


class ToyModel:
    """Logits hang on the last two tokens; with ``copying`` the source's next token usually wins.

    ``blur`` moves all logits at random a little, as a smaller model's would be.
    """

    def __init__(
        self, *, rows_differ: bool = True, copying: bool = False, blur: float = 0.0, scale: float = 3.0
    ) -> None:
        self.rows_differ, self.copying, self.steps = rows_differ, copying, 0
        random = np.random.default_rng(0)
        self.table = random.normal(0, scale, (VOCAB, VOCAB, VOCAB)).astype(np.float32)
        self.table += np.random.default_rng(1).normal(0, blur, self.table.shape).astype(np.float32)

    def encode(self, input_ids: Tokens, attention_mask: Tokens, copies: int = 1) -> ToyState:
        """No encoder: sources as they are."""
        sources = [ids[seen != 0].tolist() for ids, seen in zip(input_ids, attention_mask, strict=True)]
        rows = [ids for ids in sources for _ in range(copies)]
        return ToyState(rows, [[] for _ in rows])

    def step(self, state: ToyState, tokens: Tokens) -> Scores:
        """Logits float32 [rows, target, vocab]."""
        self.steps += 1
        return np.stack([self._row(state, row, tokens[row].tolist()) for row in range(len(tokens))])

    def keep(self, state: ToyState, lengths: Tokens) -> None:
        """Forget what was fed behind ``lengths``."""
        assert self.rows_differ or len(set(lengths.tolist())) == 1
        for row, length in enumerate(lengths):
            assert length <= len(state.fed[row])
            del state.fed[row][length:]

    def reorder(self, state: ToyState, rows: Tokens) -> None:
        """Not needed here."""
        raise NotImplementedError

    def _row(self, state: ToyState, row: int, tokens: list[int]) -> Scores:
        found = []
        for token in tokens:
            state.fed[row].append(token)
            past = [0, *state.fed[row]]
            logits = self.table[past[-2], past[-1]].copy()
            place = len(state.fed[row]) - 1
            if self.copying and place < len(state.sources[row]) and place % 5 != 4:
                logits[state.sources[row][place]] += 20
            found.append(logits)
        return np.stack(found)

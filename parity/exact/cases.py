"""What every form of the decoder is run on: which tokens, how many at a time, which rows change places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from t5edge.exporter.reference.texts import Batch

if TYPE_CHECKING:
    from t5edge.parity.workload import Workload
    from t5edge.runtime.generation.step import StepModel, Tokens

LONG_TARGET = 320
"""Positions of the long case: past every size that a buffer starts with or grows to in its first steps."""
LONG_STEPS = (1, 1, 1, 29)
"""Tokens of its steps, again and again: single ones across the whole length, and several behind a filled cache."""
BEAMS, BEAM_STEPS = 3, (1,) * 10 + (3,) + (1,) * 3
BEYOND_MAXIMUM = 88
"""Source tokens beyond the stated maximum; ONNX Runtime knows no maximum."""


@dataclass(frozen=True)
class Case:
    """One teacher-forced run.

    Attributes:
        batch: source [sentences, source], and what each row is fed, ``decoder_input_ids`` [sentences * copies, target].
        steps: tokens of each step.
        copies: rows per sentence.
        orders: after step i the rows go on as the old rows ``orders[i]``; an empty one leaves them.
    """

    name: str
    batch: Batch
    steps: tuple[int, ...]
    copies: int = 1
    orders: tuple[tuple[int, ...], ...] = ()

    def run(self, model: StepModel[object]) -> np.ndarray:
        """Logits float32 [rows, target, vocab] along the paths that are left at the end."""
        state = model.encode(self.batch.input_ids, self.batch.attention_mask, self.copies)
        found: list[np.ndarray] = []
        start = 0
        for place, width in enumerate(self.steps):
            tokens = np.ascontiguousarray(self.batch.decoder_input_ids[:, start : start + width])
            found.append(model.step(state, tokens).copy())
            start += width
            if order := self._order(place):
                model.reorder(state, np.array(order))
                found = [logits[list(order)] for logits in found]
        return np.concatenate(found, axis=1)

    def paths(self) -> Batch:
        """What PyTorch is asked to get the same logits: each row on its own, with the tokens of its final path."""
        tokens, start = self.batch.decoder_input_ids.copy(), 0
        for place, width in enumerate(self.steps):
            start += width
            if order := self._order(place):
                tokens[:, :start] = tokens[list(order), :start]
        ids, mask = (
            np.repeat(array, self.copies, axis=0) for array in (self.batch.input_ids, self.batch.attention_mask)
        )
        return Batch(ids, mask, tokens)

    def _order(self, place: int) -> tuple[int, ...]:
        return self.orders[place] if place < len(self.orders) else ()

    def within(self, capacity: int | None) -> Case:
        """The case cut to ``capacity`` target positions."""
        target = sum(self.steps)
        if capacity is None or target <= capacity:
            return self
        batch = Batch(self.batch.input_ids, self.batch.attention_mask, self.batch.decoder_input_ids[:, :capacity])
        return Case(f"{self.name} (first {capacity})", batch, _steps(self.steps, capacity), self.copies, self.orders)


def _steps(pattern: tuple[int, ...], target: int) -> tuple[int, ...]:
    """``pattern`` again and again, up to ``target`` tokens."""
    steps: list[int] = []
    while (left := target - sum(steps)) > 0:
        steps.append(min(left, pattern[len(steps) % len(pattern)]))
    return tuple(steps)


def decoder_cases(workload: Workload, start: int, vocab_size: int) -> list[Case]:
    """Texts at once and in steps, one long target, and beams. ``start``: the token that begins a target."""
    texts = workload.texts
    length = texts.decoder_input_ids.shape[1]
    (long_source,) = workload.groups["long"].values()
    long = Batch(long_source.input_ids, long_source.attention_mask, _tokens(1, LONG_TARGET, start, vocab_size))
    return [
        Case("texts at once", texts, (length,)),
        Case("texts in steps", texts, _steps((1, 2, 5), length)),
        Case(f"{LONG_TARGET} positions in steps", long, _steps(LONG_STEPS, LONG_TARGET)),
        _beams(workload.prompts, start, vocab_size),
    ]


def _beams(prompts: Batch, start: int, vocab_size: int) -> Case:
    """Rows of padded sentences that change places within their sentence after every other step."""
    sentences, random = len(prompts.input_ids), np.random.default_rng(0)
    tokens = _tokens(sentences * BEAMS, sum(BEAM_STEPS), start, vocab_size)
    orders: list[tuple[int, ...]] = []
    for place in range(len(BEAM_STEPS)):
        chosen = np.arange(sentences)[:, None] * BEAMS + random.integers(0, BEAMS, (sentences, BEAMS))
        orders.append(tuple(chosen.reshape(-1).tolist()) if place % 2 else ())
    batch = Batch(prompts.input_ids, prompts.attention_mask, tokens)
    return Case(f"{BEAMS} beams", batch, BEAM_STEPS, BEAMS, tuple(orders))


def _tokens(rows: int, length: int, start: int, vocab_size: int) -> Tokens:
    """Random ids behind the start token, int64 [rows, length]."""
    tokens = np.random.default_rng(1).integers(1, vocab_size, (rows, length))
    tokens[:, 0] = start
    return tokens


def encoder_batches(workload: Workload) -> Mapping[str, Batch]:
    """Texts, one token, and more tokens than the stated maximum, among which every distance occurs."""
    lengths = sorted(workload.groups["lengths"].items(), key=lambda item: item[1].input_ids.shape[1])
    longest = lengths[-1][1]
    wanted = longest.input_ids.shape[1] + BEYOND_MAXIMUM
    ids = np.resize(longest.input_ids[0], wanted)[None]
    beyond = Batch(ids, np.ones_like(ids), longest.decoder_input_ids)
    return {"texts": workload.texts, **dict(lengths[:1]), f"source {wanted}": beyond}

"""What the ladder runs a bundle on: real sentences as padded batches, at the lengths where things break.

    texts         a batch of sentences of different lengths, teacher-forced on their targets
    source N      one row of exactly N source tokens, N at the edges of position buckets (1, 7, 8, 15, 16, 127, 128, 129
                  in every published model), and the maximum
    long target   one row whose target runs past the last position bucket

Amounts follow the model's size: a small model is checked on more rows than a large one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from t5edge.bundle.architecture import Architecture
from t5edge.bundle.ports import Limits
from t5edge.exporter.checkpoint.open import Checkpoint
from t5edge.exporter.checkpoint.sentence import SentenceModules
from t5edge.exporter.checkpoint.tokenizer_files import tokenizer_json
from t5edge.exporter.reference.texts import MAX_TOKENS, Batch, Encoder, Example
from t5edge.parity.judged_texts import judged_texts
from t5edge.runtime.inputs import PROMPT
from t5edge.runtime.tokenizer import pad

BEYOND = 12
"""Target tokens past the last position bucket, so that the cached steps cross every edge."""
LONG_TARGET_SOURCE = 24
TEXT_SOURCE, TEXT_TARGET = 128, 64
"""Most tokens of a text (ByT5's bytes make many): long ones have a check of their own."""


@dataclass(frozen=True)
class Effort:
    """How much is run: rows of text, target tokens behind each length, rows and tokens of generation."""

    rows: int
    target: int
    generated_rows: int
    generated: int


EFFORTS = ((20e6, Effort(16, 8, 6, 32)), (150e6, Effort(6, 6, 4, 24)), (float("inf"), Effort(3, 4, 2, 16)))
"""By parameters, upper bound first."""


def effort(parameters: int) -> Effort:
    """The amounts for a model of this size."""
    return next(amounts for bound, amounts in EFFORTS if parameters < bound)


@dataclass(frozen=True)
class Workload:
    """Named batches in groups: ``texts``, ``lengths``, ``long``; and what generation starts from."""

    groups: Mapping[str, Mapping[str, Batch]]
    effort: Effort

    def batches(self, groups: Sequence[str]) -> dict[str, Batch]:
        """The batches of some groups by name."""
        return {name: batch for group in groups for name, batch in self.groups[group].items()}

    @property
    def texts(self) -> Batch:
        return self.groups["texts"]["texts"]

    @property
    def prompts(self) -> Batch:
        """The first rows of the texts, for generation and for padding, without their empty columns."""
        return rows_of(self.texts, slice(0, self.effort.generated_rows))


def build_workload(checkpoint: Checkpoint, limits: Limits) -> Workload:
    """Batches for one model, none longer than ``limits`` allow.

    Texts are some of those that are judged by default; none was calibrated on.
    """
    amounts = effort(checkpoint.architecture.parameters)
    maker = RowMaker(checkpoint, limits)
    edges = bucket_edges(checkpoint.architecture)
    lengths = sorted({n for n in edges if n < limits.max_source_length} | {limits.max_source_length})
    long_target = min(checkpoint.architecture.max_distance + BEYOND, maker.longest_target)
    return Workload(
        {
            "texts": {"texts": maker.texts(amounts.rows)},
            "lengths": {f"source {n}": maker.exact(n, amounts.target, n) for n in lengths},
            "long": {"long target": maker.exact(LONG_TARGET_SOURCE, long_target, 0)},
        },
        amounts,
    )


def bucket_edges(architecture: Architecture) -> tuple[int, ...]:
    """Lengths on both sides of the position buckets' edges: exact at first, then logarithmic, saturated at the end."""
    exact, last = architecture.num_buckets // 4, architecture.max_distance
    return tuple(sorted({1, exact - 1, exact, 2 * exact - 1, 2 * exact, last - 1, last, last + 1} - {0}))


class RowMaker:
    """Rows and batches from the judged texts of one checkpoint, cut to its limits."""

    def __init__(self, checkpoint: Checkpoint, limits: Limits) -> None:
        self.architecture, self.limits, self.sentence = checkpoint.architecture, limits, checkpoint.sentence
        self.examples: Sequence[Example] = judged_texts(checkpoint)[0]
        self.encoder = Encoder(checkpoint.architecture, tokenizer_json(checkpoint), checkpoint.prompts)

    @property
    def longest_target(self) -> int:
        """Target tokens that the limits leave behind a learnt prefix."""
        return self.limits.max_target_length - self.architecture.prefix_length

    def texts(self, rows: int) -> Batch:
        """Examples spread evenly over the lengths there are, long and short ones mixed."""
        ordered = sorted(self.examples, key=lambda example: len(example.source))
        places = np.linspace(0, len(ordered) - 1, min(rows, len(ordered))).astype(int)
        chosen = [ordered[place] for place in np.random.default_rng(0).permutation(places)]
        cut = [self.row(example, TEXT_SOURCE, TEXT_TARGET) for example in chosen]
        return self._batch([source for source, _ in cut], [target for _, target in cut])

    def row(
        self, example: Example, source: int | None = None, target: int | None = None
    ) -> tuple[list[int], list[int]]:
        """Source ids, and target ids behind the start token, of at most so many tokens (None: as limits allow).

        An empty target is the start token alone.
        """
        limits, ids = self.limits, self.encoder.ids(example.target) if example.target else [0]
        prompt = self.encoder.prompt(example.source)
        longest = min(source or MAX_TOKENS, limits.max_source_length - len(prompt))
        return (
            prompt + self._cut(self.encoder.ids(example.source), longest),
            self._target(ids, min(target or MAX_TOKENS, self.longest_target)),
        )

    def exact(self, source: int, target: int, start: int) -> Batch:
        """One row of ``source`` and ``target`` tokens from examples joined, beginning with number ``start``.

        A learnt prompt stands in front of them, and counts where the limits would be passed.
        """
        prompt = self.encoder.prompt(self.examples[start % len(self.examples)].source)
        length = min(source, self.limits.max_source_length - len(prompt))
        ids = self._cut(self._joined(length, start, "source"), length)
        return self._batch([prompt + ids], [self._target(self._joined(target, start, "target"), target)])

    def _joined(self, length: int, start: int, side: str) -> list[int]:
        ids: list[int] = []
        place = start
        while len(ids) <= length:
            text: str = getattr(self.examples[place % len(self.examples)], side)
            ids += self.encoder.ids(text)[:-1]
            place += 1
        return [*ids, self.architecture.eos_token_id]

    def _cut(self, ids: list[int], length: int) -> list[int]:
        return ids if len(ids) <= length else [*ids[: length - 1], self.architecture.eos_token_id]

    def _target(self, ids: list[int], length: int) -> list[int]:
        return [self.architecture.decoder_start_token_id, *ids[:-1]][:length]

    def _batch(self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> Batch:
        ids, mask = pad(sources, self.architecture.pad_token_id)
        batch = Batch(ids, mask, pad(targets, self.architecture.pad_token_id)[0])
        return with_marked_prompts(batch, self.sentence)


def with_marked_prompts(batch: Batch, sentence: SentenceModules | None) -> Batch:
    """Of a model that leaves prompts out of its pooling: in every other row a third of the text is one."""
    if sentence is None or sentence.facts.include_prompt:
        return batch
    mask = batch.attention_mask.copy()
    for row in mask[::2]:
        row[: (int(row.sum()) - 1) // 3] = PROMPT
    return replace(batch, attention_mask=mask)


def rows_of(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch, with only as many columns as they fill (source padded on the right)."""
    mask = batch.attention_mask[rows]
    source = int(np.flatnonzero(mask.any(axis=0))[-1]) + 1
    return Batch(batch.input_ids[rows, :source], mask[:, :source], batch.decoder_input_ids[rows])


def padded_left(batch: Batch) -> Batch:
    """The same rows with the padding moved to the left of the source."""
    order = np.argsort(batch.attention_mask != 0, axis=1, kind="stable")
    return Batch(
        np.take_along_axis(batch.input_ids, order, axis=1),
        np.take_along_axis(batch.attention_mask, order, axis=1),
        batch.decoder_input_ids,
    )

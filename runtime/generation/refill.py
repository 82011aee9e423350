"""A long list of prompts over a fixed number of rows: a row that has ended is given the next prompt at once.

    queue : prompts are encoded ``rows`` at a time, ahead of need; one such group is held
    refill: cross keys, values and mask of an ended row are overwritten, its length is set to 0; other rows go on
    drain : when no prompt is left, half empty batches are packed

Every prompt draws from a generator of its own, seeded with the seed and the prompt's number: answers depend on neither
the order nor the company, but for how a batch's size rounds.

Source: Yu et al. 2022, "Orca" (iteration-level scheduling).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from t5edge.runtime.generation.drafted import DraftedSearch
from t5edge.runtime.generation.drafts import Draft, Drafting, LookupDrafter, no_draft
from t5edge.runtime.generation.options import GenerationOptions
from t5edge.runtime.generation.scores import Generated, Pick
from t5edge.runtime.generation.step import Tokens


@runtime_checkable
class RefillModel(Protocol):
    """A ``DraftModel`` whose rows can start anew on another source while others go on."""

    rows_differ: bool

    def cross(self, input_ids: Tokens, attention_mask: Tokens) -> dict[str, Any]:
        """The encoder's part of a state: mask, cross keys and values of [batch, source]."""
        ...

    def start(self, feeds: dict[str, Any], rows: int) -> Any:
        """A state of ``rows`` rows over ``cross``'s result, with an empty cache."""
        ...

    def refill(self, state: Any, row: int, feeds: dict[str, Any], place: int) -> None:
        """Row ``row`` starts anew with source ``place`` of ``feeds``."""
        ...

    def take(self, state: Any, rows: Tokens) -> Any:
        """A state of these rows alone."""
        ...


@dataclass(frozen=True)
class Prompt:
    """A prompt's number in the list and its ids."""

    number: int
    ids: Sequence[int]


@dataclass(frozen=True)
class Encoded:
    """A prompt, and where its keys and values are."""

    prompt: Prompt
    feeds: dict[str, Any]
    place: int


class NoDrafter:
    """Drafts nothing."""

    def draft(self, output: Tokens, lengths: Tokens, most: Tokens) -> Draft:
        """See ``Drafter``."""
        return no_draft(len(lengths))

    def learn(self, accepted: Tokens, counts: Tokens, seconds: float) -> None:
        """See ``Drafter``."""

    def pass_by(self, rows: int, seconds: float) -> None:
        """See ``Drafter``."""


class RefilledSearch(DraftedSearch):
    """A ``DraftedSearch`` whose rows begin anew."""

    def __init__(self, model: Any, state: Any, options: GenerationOptions, drafter: Any, rows: list[Encoded]) -> None:
        super().__init__(model, state, len(rows), options, drafter)
        self.held: list[Prompt | None] = [row.prompt for row in rows]
        self.randoms = [self._random(row.prompt) for row in rows]

    def finished(self) -> list[int]:
        """Rows whose prompt is answered and not yet taken."""
        return [row for row, prompt in enumerate(self.held) if prompt is not None and not self.running[row]]

    def answer(self, row: int) -> Generated:
        """What a row has, as the only one."""
        part = (slice(row, row + 1), slice(0, self.lengths[row]))
        return Generated(self.output[part].copy(), self.transitions[part][:, 1:].copy())

    def restart(self, row: int, encoded: Encoded | None) -> None:
        """Another prompt for an ended row, or none."""
        self.held[row] = None
        if encoded is None:
            return
        self.model.refill(self.state, row, encoded.feeds, encoded.place)
        self.held[row], self.randoms[row] = encoded.prompt, self._random(encoded.prompt)
        self.output[row, 1:], self.lengths[row], self.running[row] = self.options.pad, 1, True
        if isinstance(self.drafter, LookupDrafter):
            self.drafter.restart(row, encoded.prompt.ids)

    def pack(self) -> None:
        """Go on with the running rows alone."""
        rows = np.flatnonzero(self.running)
        self.state = self.model.take(self.state, rows)
        self.output, self.lengths, self.running = self.output[rows], self.lengths[rows], self.running[rows]
        self.transitions = self.transitions[rows]
        self.held, self.randoms = [self.held[row] for row in rows], [self.randoms[row] for row in rows]
        if isinstance(self.drafter, LookupDrafter):
            self.drafter.take(rows)

    def _random(self, prompt: Prompt) -> np.random.Generator:
        seed = self.options.seed
        return np.random.default_rng(None if seed is None else [seed, prompt.number])

    def _uniforms(self, rows: Tokens, steps: Tokens) -> NDArray[np.float64]:
        return np.array([self.randoms[row].random() for row in rows])


def stream(
    model: RefillModel,
    prompts: Iterable[Prompt],
    options: GenerationOptions,
    rows: int,
    drafting: Drafting,
    pick: Pick | None = None,
) -> Iterator[tuple[int, Generated]]:
    """Each prompt's number and answer, one row, in the order they are finished; ``pick`` says what a token scored.

    ``prompts`` are read as they are needed, ``rows`` at a time; best by falling length, or much of a group is padding.
    """
    options = replace(options, num_return_sequences=1)
    queue = _encoded(model, prompts, rows, options.pad)
    first = list(islice(queue, rows))
    if not first:
        return
    search = RefilledSearch(model, model.start(first[0].feeds, len(first)), options, NoDrafter(), first)
    if options.prompt_lookup_num_tokens:
        search.drafter = LookupDrafter([row.prompt.ids for row in first], options, drafting.pace)
    while search.running.any():
        search.advance(pick)
        for row in search.finished():
            prompt = search.held[row]
            assert prompt is not None
            yield prompt.number, search.answer(row)
            search.restart(row, next(queue, None))
        if 0 < 2 * search.running.sum() <= len(search.running):
            search.pack()


def _encoded(model: RefillModel, prompts: Iterable[Prompt], rows: int, pad: int) -> Iterator[Encoded]:
    """``prompts`` with keys and values, encoded in groups."""
    source = iter(prompts)
    while group := list(islice(source, rows)):
        longest = max(1, *(len(prompt.ids) for prompt in group))
        ids, mask = np.full((len(group), longest), pad, np.int64), np.zeros((len(group), longest), np.int64)
        for row, prompt in enumerate(group):
            ids[row, : len(prompt.ids)] = prompt.ids
            mask[row, : len(prompt.ids)] = ids[row, : len(prompt.ids)] >= 0  # an id below 0 names a learnt prefix
        feeds = model.cross(ids, mask)
        for place, prompt in enumerate(group):
            yield Encoded(prompt, feeds, place)

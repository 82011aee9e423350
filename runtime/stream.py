"""Answers to a long list of texts, in order, with bounded memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from t5edge.errors import UserError
from t5edge.runtime.batches import LoadedModel, listed
from t5edge.runtime.generation.drafts import Drafting
from t5edge.runtime.generation.options import GenerationOptions
from t5edge.runtime.generation.refill import Prompt, RefillModel, stream
from t5edge.runtime.generation.scores import Generated, Pick, pick_log_probabilities
from t5edge.runtime.generation.search import run_search
from t5edge.runtime.inputs import as_ids, check_memory

if TYPE_CHECKING:
    from t5edge.runtime.generation.pace import Pace


class TextModel(LoadedModel, Protocol):
    """What is needed of a loaded bundle."""

    pace: Pace


WINDOW = 16
"""Texts that are sorted by length, and whose answers may wait for their turn, over the rows of a batch."""


def stream_text(
    model: TextModel,
    texts: Iterable[str],
    options: GenerationOptions,
    batch_size: int,
    first: int,
    front: Sequence[int],
    read: Callable[[Generated], list[Any]],
    *,
    scored: bool,
) -> Iterator[list[Any]]:
    """See ``BundleModel.stream_text``; ``front``: ids of a learnt prompt before every text; ``read`` makes answers."""
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {batch_size}.")
    each, following = options.num_return_sequences, first
    held: dict[int, list[Any]] = defaultdict(list)
    pick = pick_log_probabilities if scored else None
    for number, row in _rows(model, _windows(model, texts, batch_size, first, front), options, batch_size, pick):
        held[number] += read(row)
        while len(held[following]) == each:
            yield held.pop(following)
            following += 1


def _windows(
    model: TextModel, texts: Iterable[str], batch_size: int, first: int, front: Sequence[int]
) -> Iterator[list[Prompt]]:
    """Some hundreds of texts at a time as ids, by falling length."""
    source, number = iter(listed(texts)), first
    while window := list(islice(source, WINDOW * batch_size)):
        rows = model.tokenizer.ids(window)
        for row in rows:
            as_ids("the tokenizer's ids", [row], model.vocab_size)
        prompts = [Prompt(number + index, [*front, *row]) for index, row in enumerate(rows)]
        number += len(prompts)
        yield sorted(prompts, key=lambda prompt: -len(prompt.ids))


def _rows(
    model: TextModel, windows: Iterable[list[Prompt]], options: GenerationOptions, batch_size: int, pick: Pick | None
) -> Iterator[tuple[int, Generated]]:
    """The number and the answer, one row, of every prompt, as many times as answers are wanted."""
    each, step_model = options.num_return_sequences, model.step_model
    if options.num_beams > 1 or not isinstance(step_model, RefillModel) or not step_model.rows_differ:
        for window in windows:
            yield from _by_batch(model, window, options, batch_size, pick)
        return

    def prompts() -> Iterator[Prompt]:
        for window in windows:
            check_memory(model.architecture, batch_size, len(window[0].ids), options.total_length)
            for prompt in window:
                yield from (Prompt(prompt.number * each + copy, prompt.ids) for copy in range(each))

    for number, row in stream(step_model, prompts(), options, batch_size, Drafting(model.pace), pick):
        yield number // each, row


def _by_batch(
    model: TextModel, window: list[Prompt], options: GenerationOptions, batch_size: int, pick: Pick | None
) -> Iterator[tuple[int, Generated]]:
    """One batch after another, of as many rows with their beams as the backend takes."""
    limits = getattr(model.step_model, "limits", None)
    most = batch_size if limits is None else max(1, min(batch_size, limits.max_batch // options.copies))
    for start in range(0, len(window), most):
        batch = window[start : start + most]
        ids, mask = model.tokenizer.pad([prompt.ids for prompt in batch])
        check_memory(model.architecture, len(ids) * options.copies, ids.shape[1], options.total_length)
        seeded = options if options.seed is None else replace(options, seed=options.seed + batch[0].number)
        found = run_search(model.step_model, ids, mask, seeded, None, pick, Drafting(model.pace, padding_scores=False))
        for index in range(len(found.sequences)):
            yield batch[index // options.num_return_sequences].number, found.row(index)

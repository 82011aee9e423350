"""The check on all judged texts: every target position in one pass without a cache, so that thousands cost little.

Of an encoder alone the positions are those of the sources.

Texts are taken in the order of their file, ``PORTION`` at a time, until all are judged or the time budget is used up,
but never fewer positions than ``Judging.least``. PyTorch block by block reads its layers once for as many.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from t5edge.bundle.architecture import Architecture
from t5edge.bundle.parity_report import CheckResult, at_least
from t5edge.exporter.reference.texts import Batch, Encoder, Example, target_mask
from t5edge.parity.hidden import HiddenErrors, compare_hidden, judge_many
from t5edge.parity.judged_texts import judged_texts
from t5edge.parity.limits import judge_logits
from t5edge.parity.measures import LogitErrors, compare_logits, pool
from t5edge.parity.subject import Subject, bundle_outputs
from t5edge.parity.workload import RowMaker, with_marked_prompts
from t5edge.runtime.generation.options import read_options
from t5edge.runtime.tokenizer import pad

PORTION = 32
"""Texts between two looks at the clock."""
BATCH_TOKENS = 4096
"""Padded source tokens of a batch."""
BATCH_LOGITS = 1 << 25
"""Padded logits of a batch: 128 MiB of float32 on either side."""
BATCH_CACHE = 1 << 27
"""Bytes of a batch's keys and values: the encoder's graph hands over those of all decoder layers at once."""
NEW_TOKENS = 64
"""Tokens that the reference generates for a text without a target."""

Errors = TypeVar("Errors", LogitErrors, HiddenErrors)
Row = tuple[list[int], list[int]]
"""Source ids with the end token, target ids behind the start token."""


def judged(subject: Subject, name: str) -> Iterator[CheckResult]:
    """3. Teacher-forced logits over the judged texts, or hidden states, and how many positions those were."""
    judging, begin = subject.opener.judging, time.monotonic()
    examples, origin = judged_texts(subject.checkpoint, judging.texts)
    maker = RowMaker(subject.checkpoint, subject.opener.limits)
    parts: list[LogitErrors | HiddenErrors] = []
    side = 0 if subject.encoder_alone else 1
    texts = positions = 0
    for portion in _portions(subject, maker.encoder, examples):
        if positions >= judging.least and time.monotonic() - begin >= judging.seconds:
            break
        parts += _judge(subject, [maker.row(example) for example in portion])
        texts, positions = texts + len(portion), sum(part.positions for part in parts)
    facts: dict[str, Any] = {
        "texts": texts,
        "of_texts": len(examples),
        "origin": origin,
        "judged_seconds": round(time.monotonic() - begin, 1),
        "budget": judging.seconds,
    }
    if subject.encoder_alone or all(example.target for example in examples):
        facts["of_positions"] = sum(len(maker.row(example)[side]) for example in examples)
    least = judging.least if texts < len(examples) else min(judging.least, positions)
    of = f"{texts} of {len(examples)} texts, {origin}"
    yield at_least(name, f"positions judged ({of})", positions, least, **facts)
    judged_on, what = (subject.precision, subject.unit("texts")), "judged texts"
    if subject.encoder_alone:
        yield from judge_many(name, pool(HiddenErrors, _of(HiddenErrors, parts)), *judged_on, what)
    else:
        yield from judge_logits(name, pool(LogitErrors, _of(LogitErrors, parts)), *judged_on, what)


def _of(kind: type[Errors], parts: Sequence[object]) -> Iterator[Errors]:
    return (part for part in parts if isinstance(part, kind))


def _portions(subject: Subject, encoder: Encoder, examples: Sequence[Example]) -> Iterator[list[Example]]:
    """The examples in parts; the first is as large as the least asks for where PyTorch runs block by block."""
    portion: list[Example] = []
    positions, wanted = 0, 0 if subject.whole is not None else subject.opener.judging.least
    for example in examples:
        portion.append(example)
        positions += len(encoder.ids(example.source if subject.encoder_alone else example.target))
        if len(portion) >= PORTION and positions >= wanted:
            yield portion
            portion, wanted = [], 0
    if portion:
        yield portion


def _judge(subject: Subject, rows: Sequence[Row]) -> Iterator[LogitErrors | HiddenErrors]:
    """The bundle against PyTorch on each batch of the rows."""
    if subject.encoder_alone:
        yield from _judge_encoder(subject, [(source, target[:1]) for source, target in rows])
        return
    rows = _with_targets(subject, rows)
    batches = {str(number): batch for number, batch in enumerate(_batches(subject, rows))}
    for name, expected in subject.reference.model.outputs(batches):
        batch = batches[name]
        mask = target_mask(batch.decoder_input_ids, subject.pad)
        found = subject.model.logits_uncached(batch.input_ids, batch.attention_mask, batch.decoder_input_ids)
        yield compare_logits(found[mask], expected.logits[mask])


def _judge_encoder(subject: Subject, rows: Sequence[Row]) -> Iterator[HiddenErrors]:
    batches = {str(number): batch for number, batch in enumerate(_batches(subject, rows))}
    for name, expected in subject.reference.model.outputs(batches):
        found = bundle_outputs(subject.model, batches[name], cached=False)
        yield compare_hidden(found, expected, batches[name].attention_mask.astype(bool))


def _with_targets(subject: Subject, rows: Sequence[Row]) -> list[Row]:
    """Rows whose target is the start token alone get what the reference generates.

    Where PyTorch cannot go token by token, it is what the bundle generates: both are then compared on those tokens.
    """
    found = list(rows)
    empty = [place for place, (_, target) in enumerate(rows) if len(target) == 1]
    if not empty:
        return found
    settings: dict[str, Any] = {"max_new_tokens": min(NEW_TOKENS, subject.longest), "num_beams": 1, "do_sample": False}
    ids, mask = pad([rows[place][0] for place in empty], subject.pad)
    tokens = (subject.whole or subject.model).generate(ids, mask, num_return_sequences=1, **settings)
    ends = set(read_options(subject.generation).eos)
    for place, row in zip(empty, tokens.tolist(), strict=True):
        end = next((index for index, token in enumerate(row) if index and token in ends), len(row))
        found[place] = rows[place][0], row[:end]
    return found


def _batches(subject: Subject, rows: Sequence[Row]) -> Iterator[Batch]:
    """Batches of rows of similar lengths, none larger than the bounds unless it is one row."""
    batch: list[Row] = []
    for row in sorted(rows, key=lambda row: (len(row[1]), len(row[0]))):
        if batch and _fill(subject.checkpoint.architecture, [*batch, row]) > 1:
            yield _padded(batch, subject)
            batch = []
        batch.append(row)
    yield _padded(batch, subject)


def _fill(a: Architecture, rows: Sequence[Row]) -> float:
    """What rows take, padded, of what a batch may hold."""
    source, target = (len(rows) * max(len(row[side]) for row in rows) for side in (0, 1))
    cache = 2 * 4 * a.decoder_layers * a.inner_dim * (source + target)
    return max(source / BATCH_TOKENS, target * a.vocab_size / BATCH_LOGITS, cache / BATCH_CACHE)


def _padded(rows: Sequence[Row], subject: Subject) -> Batch:
    sources, targets = zip(*rows, strict=True)
    batch = Batch(*pad(sources, subject.pad), pad(targets, subject.pad)[0])
    return with_marked_prompts(batch, subject.checkpoint.sentence)

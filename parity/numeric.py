"""Checks 1 to 6 and the range: numbers against numbers. Tokens and tasks are in ``generation``.

A check is a function of the subject that yields results under the check's name; limits come from the precision.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from t5edge.bundle.dtype import NARROW
from t5edge.bundle.parity_report import CheckResult, at_most, not_applicable
from t5edge.exporter.reference.texts import Batch, target_mask
from t5edge.parity.hidden import judge_hidden
from t5edge.parity.limits import (
    FLOAT32_ERROR,
    bounds_errors,
    error_limit,
    judge_briefly,
    judge_error,
    judge_logits,
)
from t5edge.parity.measures import LogitErrors, compare_logits, pool, relative_error
from t5edge.parity.operators import block_error, operator_errors
from t5edge.parity.reference import OutputErrors
from t5edge.parity.subject import Subject, bundle_outputs
from t5edge.parity.workload import padded_left, rows_of

POSITION_SPREAD = 4.0
"""In float32 a single position may be off by this many times the bound on all of them."""


def operators(subject: Subject, name: str) -> Iterator[CheckResult]:
    """1. Fused operators against their contracts, fused blocks against the trace: float32, random weights."""
    architecture = subject.checkpoint.architecture
    for operator, error in operator_errors(subject.blocks, architecture).items():
        yield judge_error(name, f"{operator} against numpy", error, FLOAT32_ERROR)
    for kind, block in subject.blocks.items():
        yield judge_error(
            name, f"fused {kind} block against its trace", block_error(block, architecture), FLOAT32_ERROR
        )


def encoder(subject: Subject, name: str) -> Iterator[CheckResult]:
    """2. Encoder output and cross keys and values; of an encoder alone its cosines besides."""
    yield from _encoder_results(subject, name, subject.errors("texts", subject.workload.texts))


def _encoder_results(subject: Subject, name: str, errors: OutputErrors) -> Iterator[CheckResult]:
    precision, unit = subject.precision, subject.unit("texts")
    if subject.encoder_alone:
        yield from judge_hidden(name, errors.states, precision, unit)
        if errors.logits.positions:
            yield from judge_logits(name, errors.logits, precision, unit, "label logits")
        return
    hidden, cross = error_limit(precision, unit, "hidden"), error_limit(precision, unit, "cross")
    yield judge_error(name, "encoder output", errors.hidden, hidden)
    yield judge_error(name, "cross keys and values", errors.cross, cross, worst=errors.worst_cross)


def logits(subject: Subject, name: str) -> Iterator[CheckResult]:
    """3. Teacher-forced logits of the cached decoder, one step for each token; of both where there are two."""
    batch, unit = subject.workload.texts, subject.unit("texts")
    errors = subject.errors("texts", batch, cached=True)
    yield from judge_logits(name, errors.logits, subject.precision, unit)
    if subject.buffered_logits is not None:
        mask = target_mask(batch.decoder_input_ids, subject.pad)
        found = compare_logits(subject.buffered_logits[mask], subject.reference.outputs["texts"].logits[mask])
        yield from judge_logits(name, found, subject.precision, unit, "logits cached in buffers")


def value_range(subject: Subject, name: str) -> Iterator[CheckResult]:
    """Every tensor rounded to the compute dtype, as on hardware: no overflow, and still within the limits.

    ONNX Runtime's CPU provider widens float16 operators and skips the roundings between them, so overflow hides there.
    """
    compute = subject.precision.compute
    if compute not in NARROW:
        yield not_applicable(name, f"the compute dtype is {compute}, there is nothing to round")
        return
    if subject.emulated:
        yield not_applicable(
            name, f"{subject.opener.target} emulates {compute} already, so checks 2, 3 and 6 measure it"
        )
        return
    batches = subject.workload.batches(("texts", "lengths"))
    found = {key: subject.errors(key, batch, subject.rounded) for key, batch in batches.items()}
    yield from _encoder_results(subject, name, found["texts"])
    if not subject.encoder_alone:
        yield from judge_logits(name, found["texts"].logits, subject.precision, subject.unit("texts"))
    lengths = {key: errors for key, errors in found.items() if key != "texts"}
    yield from _length_results(subject, name, lengths)


def cache(subject: Subject, name: str) -> Iterator[CheckResult]:
    """4. Cached steps against one pass over the whole target, with a cache that grows and with one in buffers."""
    batch = subject.workload.texts
    arrays = (batch.input_ids, batch.attention_mask, batch.decoder_input_ids)
    uncached = subject.model.logits_uncached(*arrays).copy()
    mask = target_mask(batch.decoder_input_ids, subject.pad)
    errors = compare_logits(subject.model.logits(*arrays)[mask], uncached[mask])
    yield judge_briefly(name, errors, subject.precision, subject.repeated, "cached against uncached logits")
    if subject.buffered_logits is not None:
        errors = compare_logits(subject.buffered_logits[mask], uncached[mask])
        what = "logits cached in buffers against uncached"
        yield judge_briefly(name, errors, subject.precision, subject.repeated, what)


def padding(subject: Subject, name: str) -> Iterator[CheckResult]:
    """5. A row on its own, among others padded on the right, and padded on the left."""
    batch = subject.workload.prompts
    rows = [rows_of(batch, slice(row, row + 1)) for row in range(len(batch.input_ids))]
    alone = [bundle_outputs(subject.model, row, cached=False) for row in rows]
    own = np.concatenate([single.hidden[_text(row)] for row, single in zip(rows, alone, strict=True)])
    mask = target_mask(batch.decoder_input_ids, subject.pad)
    unit = subject.repeated
    for side, padded in (("right", batch), ("left", padded_left(batch))):
        together = bundle_outputs(subject.model, padded, cached=False)
        hidden = relative_error(together.hidden[_text(padded)], own)
        limit = error_limit(subject.precision, unit, "hidden")
        yield judge_error(name, f"encoder output padded on the {side}", hidden, limit)
        if subject.encoder_alone:
            continue
        compared = [
            compare_logits(together.logits[row][mask[row]], single.logits[0][mask[row]])
            for row, single in enumerate(alone)
        ]
        errors = pool(LogitErrors, compared)
        yield judge_briefly(name, errors, subject.precision, unit, f"logits padded on the {side}")


def _text(batch: Batch) -> np.ndarray:
    """Positions of the source that hold text, bool [batch, source]."""
    text: np.ndarray = batch.attention_mask.astype(bool)
    return text


def lengths(subject: Subject, name: str) -> Iterator[CheckResult]:
    """6. Source lengths at the bucket edges, and a target longer than the last bucket in cached steps."""
    batches = subject.workload.groups["lengths"]
    yield from _length_results(subject, name, {key: subject.errors(key, batch) for key, batch in batches.items()})
    if subject.encoder_alone:
        return
    ((key, batch),) = subject.workload.groups["long"].items()
    errors = subject.errors(key, batch, cached=True).logits
    what = f"logits over {batch.decoder_input_ids.shape[1]} cached steps"
    unit = subject.unit(key)
    if bounds_errors(subject.precision):
        yield from judge_logits(name, errors, subject.precision, unit, what)
    else:
        yield judge_briefly(name, errors, subject.precision, unit, what)
    limit = error_limit(subject.precision, unit, "position")
    if limit is not None:
        bound = limit if unit else limit * POSITION_SPREAD
        yield at_most(
            name, f"worst position, {what}", errors.worst_position, bound, position=int(errors.error.argmax())
        )


def _length_results(subject: Subject, name: str, found: dict[str, OutputErrors]) -> Iterator[CheckResult]:
    """The worst length by its own limit. A length's limit is not below that of all: one short row may be lucky."""
    unit = subject.unit(*found)
    limit = error_limit(subject.precision, unit, "hidden")
    worst = max(found, key=lambda key: found[key].hidden)
    by_length = {key: errors.hidden for key, errors in found.items()}
    yield judge_error(name, f"encoder output, worst of {len(found)} lengths", found[worst].hidden, limit, **by_length)
    if subject.encoder_alone:
        return
    results = [
        judge_briefly(
            name, errors.logits, subject.precision, unit, f"logits, worst of {len(found)} lengths", length=key
        )
        for key, errors in found.items()
    ]
    yield max(results, key=lambda result: float("inf") if result.value is None else result.value)

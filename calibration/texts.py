"""What a model is calibrated on: which texts, how many, as padded batches of similar lengths.

--calibration FILE    a text per line, or JSONL with source and optional target      Python: any iterable of texts
t5-demo               its own training prompts
anything else         the bundled sentences, and a warning
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from t5edge.errors import UserError
from t5edge.exporter.checkpoint.tokenizer_files import tokenizer_json
from t5edge.exporter.reference.texts import (
    TEXTS_FILE,
    Batch,
    Encoder,
    Example,
    bundled_examples,
    read_examples,
    text_key,
)

if TYPE_CHECKING:
    from pathlib import Path

    from t5edge.bundle.ports import Limits
    from t5edge.exporter.checkpoint.open import Checkpoint
    from t5edge.progress import Progress

COUNT = 128
"""Texts that are used at most; of more, a seeded draw."""
SEED = 0
TOKENS_PER_BATCH = 2048


@dataclass(frozen=True)
class Share:
    """A part of the texts: how many, and how many tokens of each source and target."""

    texts: int
    source: int
    target: int


SENSITIVITY, GATE = Share(4, 32, 16), Share(24, 64, 24)
"""For the sensitivity of every quantization point, and for the gate. The former are few: each point takes a copy."""


@dataclass(frozen=True)
class CalibrationTexts:
    """Batches for the ranges, one batch for sensitivity, one for the gate; ``origin`` is said in the manifest."""

    batches: tuple[Batch, ...]
    sensitivity: Batch
    gate: Batch
    count: int
    origin: str
    keys: tuple[str, ...] = ()
    """What tells the texts apart from those that a bundle is judged on (``text_key``)."""


def examples_from(texts: Iterable[str | tuple[str, str] | Example]) -> tuple[Example, ...]:
    """Texts given in Python: sources, (source, target) pairs, or examples.

    Raises:
        UserError: nothing is there, or an entry is none of these.
    """
    found = []
    for entry in texts:
        if isinstance(entry, Example):
            found.append(entry)
        elif isinstance(entry, str):
            found.append(Example(entry, entry))
        elif isinstance(entry, tuple) and len(entry) == 2 and all(isinstance(part, str) for part in entry):
            found.append(Example(*entry))
        else:
            raise UserError(f"calibration: {entry!r:.60} is neither a text nor a (source, target) pair of texts.")
    if not found:
        raise UserError("calibration: no texts were given; at least one is needed.")
    return tuple(found)


def choose_examples(
    checkpoint: Checkpoint, given: str | Path | Sequence[Example] | None, progress: Progress
) -> tuple[list[Example], str]:
    """The examples and where they come from; see the module.

    Raises:
        UserError: the file cannot be read or holds no texts.
    """
    if isinstance(given, (list, tuple)):
        return list(given), "given in Python"
    if given:
        return read_examples(str(given)), PurePath(str(given)).name
    own = checkpoint.file(TEXTS_FILE)
    if own is not None:
        return read_examples(own), f"{checkpoint.source}: {TEXTS_FILE}"
    progress.message(
        "calibrated on the bundled sentences, which may not resemble your texts; "
        "pass your own with --calibration FILE (one text per line, or JSONL with source and target)."
    )
    return bundled_examples(), "bundled sentences"


def read_texts(
    checkpoint: Checkpoint, given: str | Path | Sequence[Example] | None, limits: Limits, progress: Progress
) -> CalibrationTexts:
    """The texts ``given`` (None: those of the checkpoint, or the bundled sentences), ready to run.

    Raises:
        UserError: the file cannot be read, holds no texts, or a text is far too long to be meant as one.
    """
    examples, origin = choose_examples(checkpoint, given, progress)
    return calibration_texts(checkpoint, examples, limits, origin)


def calibration_texts(
    checkpoint: Checkpoint, examples: Sequence[Example], limits: Limits, origin: str
) -> CalibrationTexts:
    """Draw, tokenize, cut to the limits and batch.

    Raises:
        UserError: a text is far too long to be meant as one.
    """
    drawn = list(examples)
    if len(drawn) > COUNT:
        drawn = random.Random(SEED).sample(drawn, COUNT)
    encoder = Encoder(checkpoint.architecture, tokenizer_json(checkpoint), checkpoint.prompts)
    drawn.sort(key=lambda example: len(example.source))
    batches = [*_batches(encoder, drawn), *_extremes(encoder, drawn, limits)]
    return CalibrationTexts(
        tuple(_cut(batch, checkpoint, limits.max_source_length, limits.max_target_length) for batch in batches),
        _part(encoder, drawn, SENSITIVITY, checkpoint),
        _part(encoder, drawn, GATE, checkpoint),
        len(drawn),
        origin,
        tuple(sorted({text_key(example.source) for example in drawn})),
    )


def _batches(encoder: Encoder, ordered: Sequence[Example]) -> list[Batch]:
    """Batches of at most ``TOKENS_PER_BATCH`` padded tokens (but a text at least)."""
    parts: list[list[Example]] = [[]]
    for example in ordered:
        longest = max(len(encoder.ids(example.source)), len(encoder.ids(example.target)))
        if parts[-1] and longest * (len(parts[-1]) + 1) > TOKENS_PER_BATCH:
            parts.append([])
        parts[-1].append(example)
    return [encoder.batch(part) for part in parts]


def _extremes(encoder: Encoder, ordered: Sequence[Example], limits: Limits) -> list[Batch]:
    """The shortest input, a bare end token, and the longest: texts joined until the limits are full.

    Positions and lengths far from the texts' own have activations of their own; ranges that never saw them clip them.
    """
    longest: list[str] = []
    tokens = 0
    for example in reversed(ordered):
        if tokens > limits.max_source_length:
            break
        longest.append(example.source)
        tokens += len(encoder.ids(example.source)) - 1
    joined = " ".join(longest)
    return [encoder.batch([Example("", ordered[0].target)]), encoder.batch([Example(joined, ordered[-1].target)])]


def _spread(ordered: Sequence[Example], count: int) -> list[Example]:
    """``count`` examples evenly over the lengths there are."""
    step = max(1, len(ordered) / count)
    return [ordered[int(index * step)] for index in range(min(count, len(ordered)))]


def _part(encoder: Encoder, ordered: Sequence[Example], share: Share, checkpoint: Checkpoint) -> Batch:
    return _cut(encoder.batch(_spread(ordered, share.texts)), checkpoint, share.source, share.target)


def _cut(batch: Batch, checkpoint: Checkpoint, source: int, target: int) -> Batch:
    """At most so many tokens besides a learnt prompt; a source that is cut keeps its end token."""
    source += max((len(prompt.ids) for prompt in checkpoint.prompts), default=0)
    ids, mask = batch.input_ids[:, :source].copy(), batch.attention_mask[:, :source]
    if batch.input_ids.shape[1] > source:
        ids[batch.attention_mask.sum(axis=1) > source, -1] = checkpoint.architecture.eos_token_id
    return Batch(ids, mask, batch.decoder_input_ids[:, :target])

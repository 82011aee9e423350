"""What a bundle is judged on: texts that its calibration never saw.

--texts FILE        a source per line, or JSONL with source and optional target; without a target, what the reference
                    itself generates
a checkpoint's own  its ``heldout.jsonl``; where that is short, the bundled texts besides
anything else       the bundled texts: several styles, languages and lengths
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from t5edge.errors import UserError
from t5edge.exporter.checkpoint.tokenizer_files import tokenizer_json
from t5edge.exporter.reference.texts import Encoder, Example, judged_examples, read_examples, text_key

if TYPE_CHECKING:
    from t5edge.exporter.checkpoint.open import Checkpoint

TASK_FILE = "heldout.jsonl"
LEAST = 2000
"""Target positions that are judged at any size, however long it takes."""
LEAST_ON_BUDGET = 256
"""The same where the user sets a time budget."""
BUDGET = 120.0
"""Seconds within which texts beyond the least are judged."""


@dataclass(frozen=True)
class Judging:
    """``texts``: a file of the user's; ``budget``: the user's time budget, seconds. None for the defaults."""

    texts: str | Path | None = None
    budget: float | None = None

    @property
    def least(self) -> int:
        """Target positions that are judged whatever the time."""
        return LEAST if self.budget is None else LEAST_ON_BUDGET

    @property
    def seconds(self) -> float:
        """When judging ends, but for the least."""
        return BUDGET if self.budget is None else self.budget


def judged_texts(checkpoint: Checkpoint, given: str | Path | None = None) -> tuple[list[Example], str]:
    """The texts and where they come from; see the module. An empty target is left to the reference.

    Raises:
        UserError: a file cannot be read or holds no texts.
    """
    if given is not None:
        return read_examples(given, copy_source=False), PurePath(given).name
    own = checkpoint.file(TASK_FILE)
    if own is None:
        return judged_examples(), "bundled texts"
    examples = read_examples(own)
    encoder = Encoder(checkpoint.architecture, tokenizer_json(checkpoint))
    if sum(len(encoder.ids(example.target)) for example in examples) >= LEAST:
        return examples, TASK_FILE
    return [*examples, *judged_examples()], f"{TASK_FILE} and bundled texts"


def check_disjoint(checkpoint: Checkpoint, given: str | Path | None, calibrated: Collection[str]) -> None:
    """``calibrated``: the keys of the texts that were calibrated on (``text_key``); none where nothing was.

    Raises:
        UserError: one of the judged texts is among them, or their file cannot be read.
    """
    examples, origin = judged_texts(checkpoint, given)
    known = set(calibrated)
    both = [example.source for example in examples if text_key(example.source) in known]
    if both:
        raise UserError(
            f"{len(both)} of {len(examples)} texts to judge the bundle on ({origin}) were calibrated on, such as "
            f"'{both[0][:40]}'; name others with --texts, or calibrate on others with --calibration."
        )

"""Real sentences as token ids: for choosing the rescale, for the parity ladder, and for calibration."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from t5edge.bundle.files import regular
from t5edge.errors import UserError
from t5edge.runtime.tokenizer import pad

if TYPE_CHECKING:
    from t5edge.bundle.architecture import Architecture
    from t5edge.bundle.records import PromptFacts

DATA = Path(__file__).parents[1] / "data"
MAX_TOKENS = 4096


@dataclass(frozen=True)
class Example:
    """A source text and what the decoder is teacher-forced on."""

    source: str
    target: str


@dataclass(frozen=True)
class Batch:
    """Padded ids: ``input_ids`` and ``attention_mask`` int64 [batch, source], ``decoder_input_ids`` [batch, target]."""

    input_ids: np.ndarray
    attention_mask: np.ndarray
    decoder_input_ids: np.ndarray

    def of_rows(self, rows: np.ndarray) -> Batch:
        """Some of its rows, with all of its columns."""
        return Batch(self.input_ids[rows], self.attention_mask[rows], self.decoder_input_ids[rows])


def bundled_examples(demo: bool = False) -> list[Example]:
    """The sentences that ship with the package; for ``t5-demo`` prompts of its own task."""
    return read_examples(DATA / ("t5-demo/calibration.jsonl" if demo else "sentences.jsonl"))


def judged_examples() -> list[Example]:
    """Texts that ship with the package for judging bundles: none of them is calibrated on."""
    return read_examples(DATA / "judged.jsonl")


def read_examples(path: str | Path, copy_source: bool = True) -> list[Example]:
    """Examples from a text file (a source per line) or JSONL with ``source`` and optional ``target``.

    A missing target is the source, or, without ``copy_source``, empty.

    Raises:
        UserError: the file is missing, no regular file, empty, not UTF-8, or a line is not an object with a source.
    """
    file = Path(path)
    try:
        lines = [line for line in regular(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"'{file}' cannot be read: {error.strerror}; pass a text or JSONL file.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"'{file}' is not UTF-8 (byte {error.start}); convert it to UTF-8.") from error
    if not lines:
        raise UserError(f"'{file}' is empty; it needs at least one line of text.")
    if file.suffix not in (".jsonl", ".json"):
        return [Example(line, line if copy_source else "") for line in lines]
    return [_example(line, file, number, copy_source) for number, line in enumerate(lines, start=1)]


def _example(line: str, file: Path, number: int, copy_source: bool) -> Example:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise UserError(f"'{file}', line {number} is not JSON ({error}).") from error
    if not isinstance(data, dict) or not isinstance(data.get("source"), str):
        raise UserError(
            f'\'{file}\', line {number} has no text under "source"; expected {{"source": ..., "target": ...}}.'
        )
    return Example(data["source"], str(data.get("target") or (data["source"] if copy_source else "")))


def text_key(text: str) -> str:
    """Equal for texts that differ in case and white space only: 16 hexadecimal digits."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode()).hexdigest()[:16]


class Encoder:
    """Texts to ids of one model: its tokenizer, or, where there is none, ids that depend on the words alone.

    ``prompts``: ids of learnt prompts, of which every source has one in front; which one depends on its text.
    """

    def __init__(
        self, architecture: Architecture, tokenizer_json: bytes | None, prompts: Sequence[PromptFacts] = ()
    ) -> None:
        self._architecture, self._prompts = architecture, prompts
        self._tokenizer = None
        if tokenizer_json is not None:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_str(tokenizer_json.decode("utf-8"))
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()

    def ids(self, text: str) -> list[int]:
        """Token ids of one text, end token last, each below the vocabulary's size.

        Raises:
            UserError: the text is longer than ``MAX_TOKENS``.
        """
        if self._tokenizer is not None:
            ids = list(self._tokenizer.encode(text).ids)
        else:
            ids = [*self._hashed(text), self._architecture.eos_token_id]
        if len(ids) > MAX_TOKENS:
            raise UserError(
                f"a text of {len(ids)} tokens ('{text[:30]}…') is too long; at most {MAX_TOKENS} are allowed."
            )
        return [min(token, self._architecture.vocab_size - 1) for token in ids]

    def prompt(self, text: str) -> list[int]:
        """Ids in front of a source; none where the model has no learnt prompts."""
        return list(self._prompts[zlib.crc32(text.encode()) % len(self._prompts)].ids) if self._prompts else []

    def _hashed(self, text: str) -> list[int]:
        first, size = 3, self._architecture.vocab_size
        return [first + zlib.crc32(word.encode()) % max(1, size - first) for word in text.split()]

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Pad examples into one batch; the decoder's input is the target behind the start token."""
        a = self._architecture
        sources = [self.prompt(example.source) + self.ids(example.source) for example in examples]
        targets = [[a.decoder_start_token_id, *self.ids(example.target)[:-1]] for example in examples]
        ids, mask = pad(sources, a.pad_token_id)
        return Batch(ids, mask, pad(targets, a.pad_token_id)[0])

    def batches(self, examples: Sequence[Example], count: int) -> list[Batch]:
        """``count`` batches of similar lengths, so that little is padded."""
        ordered = sorted(examples, key=lambda example: len(example.source))
        size = max(1, -(-len(ordered) // count))
        return [self.batch(ordered[start : start + size]) for start in range(0, len(ordered), size)]


TEXTS_FILE = "calibration.jsonl"


def target_mask(decoder_input_ids: np.ndarray, pad_token_id: int) -> np.ndarray:
    """Positions of the target that hold text, bool [batch, target]: the start token, and what is not padding."""
    mask: np.ndarray = decoder_input_ids != pad_token_id
    mask[:, 0] = True
    return mask

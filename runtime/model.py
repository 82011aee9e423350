"""A loaded bundle: hidden states, logits, token ids, text. Imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t5edge.bundle.architecture import Architecture
from t5edge.bundle.manifest import Manifest
from t5edge.errors import UserError
from t5edge.runtime.backend import find_backend
from t5edge.runtime.generation.options import GenerationOptions, read_options
from t5edge.runtime.generation.search import OnToken, generate
from t5edge.runtime.inputs import as_ids, as_mask, check_memory
from t5edge.runtime.intact import check_intact
from t5edge.runtime.tokenizer import BundleTokenizer

if TYPE_CHECKING:
    from t5edge.runtime.generation.step import Tokens
    from t5edge.runtime.onnxruntime.arithmetic import Arithmetic

BATCH_TOKENS = 4096
"""Most source tokens of a batch of ``generate_text``, padding included, beams counted as rows."""


class BundleModel:
    """What ``t5edge.load`` returns. Arrays are numpy, batch first."""

    def __init__(self, folder: Path, manifest: Manifest, step_model: Any) -> None:
        self.folder, self.manifest, self.step_model = folder, manifest, step_model

    @property
    def vocab_size(self) -> int:
        return self.manifest.architecture.vocab_size

    @property
    def arithmetic(self) -> Arithmetic | None:
        """How int8 is multiplied by int8 on this CPU, and whether that is exact; None where the CPU does not."""
        found: Arithmetic | None = getattr(self.step_model, "arithmetic", None)
        return found

    @property
    def architecture(self) -> Architecture:
        """The facts of the model."""
        return self.manifest.architecture

    @cached_property
    def tokenizer(self) -> BundleTokenizer:
        """Loaded on first use; raises UserError when the bundle has none."""
        return BundleTokenizer(self.folder, self.manifest.generation.get("pad_token_id") or 0)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The last hidden state of each text, float32 [tokens, d_model], its end token included, without padding.

        Texts of like length share a batch, as in ``generate_text``.
        """
        if isinstance(texts, str):
            raise UserError("encode takes a list of texts, not one string; pass [text].")
        rows, found = self.tokenizer.ids(texts), dict[int, np.ndarray]()
        for batch in batches([len(row) for row in rows], BATCH_TOKENS):
            ids, mask = self.tokenizer.pad([rows[index] for index in batch])
            hidden = self.encode_ids(ids, mask)
            found |= {index: hidden[place, : len(rows[index])] for place, index in enumerate(batch)}
        return [found[index] for index in range(len(texts))]

    def encode_ids(self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
        """The encoder's last hidden state, float32 [batch, source, d_model].

        ``input_ids``, ``attention_mask`` int [batch, source]. Without a mask every token counts, padding too.

        Raises:
            UserError: ids outside the vocabulary, wrong shapes or dtypes, or more than the memory holds.
        """
        ids = as_ids("input_ids", input_ids, self.vocab_size)
        mask = as_mask(attention_mask, ids)
        check_memory(self.architecture, len(ids), ids.shape[1], 0)
        hidden: np.ndarray = self.step_model.hidden_and_cross(ids, mask)["last_hidden_state"]
        return hidden.astype(np.float32)

    def require_decoder(self, what: str) -> None:
        """Raises: UserError when the bundle is an encoder alone and has no ``what``."""
        if self.architecture.encoder_alone:
            raise UserError(f"'{self.folder}' is an encoder alone and has no {what}; call encode() or encode_ids().")

    def logits(
        self, input_ids: np.ndarray, attention_mask: np.ndarray | None, decoder_input_ids: np.ndarray
    ) -> np.ndarray:
        """Teacher-forced logits, float32 [batch, target, vocab], one cached step per target token.

        ``input_ids``, ``attention_mask`` int [batch, source]; ``decoder_input_ids`` int [batch, target].

        Raises:
            UserError: ids outside the vocabulary, wrong shapes or dtypes, or more than the memory holds.
        """
        ids, mask, targets = self._teacher_forced(input_ids, attention_mask, decoder_input_ids)
        state = self.step_model.encode(ids, mask)
        steps = [self.step_model.step(state, targets[:, [column]]).copy() for column in range(targets.shape[1])]
        return np.concatenate(steps, axis=1)

    def logits_uncached(
        self, input_ids: np.ndarray, attention_mask: np.ndarray | None, decoder_input_ids: np.ndarray
    ) -> np.ndarray:
        """The same in one step over the whole target, past length 0."""
        ids, mask, targets = self._teacher_forced(input_ids, attention_mask, decoder_input_ids)
        logits: np.ndarray = self.step_model.step(self.step_model.encode(ids, mask), targets)
        return logits

    def generate(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray | None = None,
        *,
        on_token: OnToken | None = None,
        **options: Any,
    ) -> Tokens:
        """Token ids int64 [batch * num_return_sequences, length], decoder start token first.

        ``options`` are those of ``GenerationOptions`` (max_new_tokens, num_beams, ...) over the bundle's own.

        Raises:
            UserError: ids outside the vocabulary, wrong shapes or dtypes, a wrong option, too large for the memory.
        """
        self.require_decoder("generate()")
        ids = as_ids("input_ids", input_ids, self.vocab_size)
        mask, chosen = as_mask(attention_mask, ids), self.options(**options)
        check_memory(self.architecture, len(ids) * chosen.copies, ids.shape[1], chosen.total_length)
        return generate(self.step_model, ids, mask, chosen, on_token)

    def options(self, **options: Any) -> GenerationOptions:
        """The bundle's generation settings with ``options`` over them.

        Raises:
            UserError: an unknown option, a wrong value, or a token id outside the vocabulary.
        """
        chosen = read_options(self.manifest.generation, **options)
        chosen.check_ids(self.vocab_size)
        return chosen

    def generate_text(
        self,
        texts: Sequence[str],
        *,
        skip_special_tokens: bool = True,
        on_batch: Callable[[int], None] | None = None,
        **options: Any,
    ) -> list[str]:
        """Texts for texts, in their order, ``num_return_sequences`` for each; see ``generate`` for the options.

        Texts of like length share a batch, and no batch holds more than ``BATCH_TOKENS`` source tokens (but a longer
        text has a batch of its own); all that fits into one batch runs as one, in the order given.
        ``on_batch`` is told how many texts each batch has answered.
        """
        if isinstance(texts, str):
            raise UserError("generate_text takes a list of texts, not one string; pass [text].")
        self.require_decoder("generate_text()")
        rows, chosen = self.tokenizer.ids(texts), self.options(**options)
        answers: dict[int, list[str]] = {}
        for number, batch in enumerate(batches([len(row) for row in rows], BATCH_TOKENS // chosen.copies)):
            ids, mask = self.tokenizer.pad([rows[index] for index in batch])
            if chosen.seed is not None:
                options["seed"] = chosen.seed + number
            found = self.tokenizer.decode(self.generate(ids, mask, **options), skip_special_tokens)
            each = len(found) // len(batch)
            answers |= {index: found[place * each : (place + 1) * each] for place, index in enumerate(batch)}
            if on_batch is not None:
                on_batch(len(batch))
        return [answer for index in range(len(texts)) for answer in answers[index]]

    def _teacher_forced(
        self, input_ids: np.ndarray, attention_mask: np.ndarray | None, decoder_input_ids: np.ndarray
    ) -> tuple[Tokens, Tokens, Tokens]:
        self.require_decoder("logits")
        ids = as_ids("input_ids", input_ids, self.vocab_size)
        targets = as_ids("decoder_input_ids", decoder_input_ids, self.vocab_size)
        if len(targets) != len(ids):
            raise UserError(f"decoder_input_ids has {len(targets)} rows and input_ids {len(ids)}; give both as many.")
        check_memory(self.architecture, len(ids), ids.shape[1], targets.shape[1])
        return ids, as_mask(attention_mask, ids), targets


def batches(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Indices of texts in batches whose padded size, rows times the longest, stays within ``most`` tokens.

    All of them in one batch, in their order, where that fits; else by length. A longer text stands alone.

    >>> batches([3, 9, 2], most=12)
    [[2, 0], [1]]
    """
    if len(lengths) * max(lengths, default=0) <= most:
        return [[*range(len(lengths))]] if lengths else []
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if found and (len(found[-1]) + 1) * lengths[index] <= most:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def load(folder: str | Path, target: str = "onnxruntime", *, check: bool = True, **settings: Any) -> BundleModel:
    """Open a bundle on ``target``; ``check`` compares its files with the manifest first (``check_intact``).

    Raises:
        UserError: not a bundle, files that changed, an unknown target, or the target cannot run it here.
    """
    find_backend(target)
    manifest = Manifest.read(Path(folder))
    if check:
        check_intact(Path(folder), manifest)
    return open_model(Path(folder), manifest, target, **settings)


def open_model(folder: Path, manifest: Manifest, target: str = "onnxruntime", **settings: Any) -> BundleModel:
    """Open the bundle in ``folder`` under a manifest that need not be written yet; raises as ``load``."""
    return BundleModel(folder, manifest, find_backend(target).open(folder, manifest, **settings))

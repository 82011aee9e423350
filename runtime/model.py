"""A loaded bundle: logits, token ids, text. Imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t5edge.bundle.manifest import Manifest
from t5edge.errors import UserError
from t5edge.runtime.backend import find_backend
from t5edge.runtime.generation.options import read_options
from t5edge.runtime.generation.search import OnToken, generate
from t5edge.runtime.tokenizer import BundleTokenizer

if TYPE_CHECKING:
    from t5edge.runtime.generation.step import Tokens


class BundleModel:
    """What ``t5edge.load`` returns. Arrays are numpy, batch first."""

    def __init__(self, folder: Path, manifest: Manifest, step_model: Any) -> None:
        self.folder, self.manifest, self.step_model = folder, manifest, step_model

    @property
    def vocab_size(self) -> int:
        return self.manifest.architecture.vocab_size

    @cached_property
    def tokenizer(self) -> BundleTokenizer:
        """Loaded on first use; raises UserError when the bundle has none."""
        return BundleTokenizer(self.folder, self.manifest.generation.get("pad_token_id") or 0)

    def logits(
        self, input_ids: np.ndarray, attention_mask: np.ndarray | None, decoder_input_ids: np.ndarray
    ) -> np.ndarray:
        """Teacher-forced logits, float32 [batch, target, vocab], one cached step per target token.

        ``input_ids``, ``attention_mask`` int [batch, source]; ``decoder_input_ids`` int [batch, target].
        """
        ids, mask = self._checked(input_ids, attention_mask)
        targets = np.ascontiguousarray(decoder_input_ids, dtype=np.int64)
        if targets.ndim != 2 or len(targets) != len(ids) or targets.shape[1] == 0:
            raise UserError(f"decoder_input_ids has shape {targets.shape}; expected [{len(ids)}, target >= 1].")
        state = self.step_model.encode(ids, mask)
        steps = [self.step_model.step(state, targets[:, [column]]).copy() for column in range(targets.shape[1])]
        return np.concatenate(steps, axis=1)

    def logits_uncached(
        self, input_ids: np.ndarray, attention_mask: np.ndarray | None, decoder_input_ids: np.ndarray
    ) -> np.ndarray:
        """The same in one step over the whole target, past length 0."""
        ids, mask = self._checked(input_ids, attention_mask)
        state = self.step_model.encode(ids, mask)
        logits: np.ndarray = self.step_model.step(state, np.ascontiguousarray(decoder_input_ids, dtype=np.int64))
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

        ``options`` are those of ``GenerationOptions`` (max_new_tokens, num_beams, ...) over the bundle's
        generation_config.json.
        """
        ids, mask = self._checked(input_ids, attention_mask)
        return generate(self.step_model, ids, mask, read_options(self.manifest.generation, **options), on_token)

    def generate_text(self, texts: Sequence[str], **options: Any) -> list[str]:
        """Texts for texts; see ``generate`` for the options."""
        if isinstance(texts, str):
            raise UserError("generate_text takes a list of texts, not one string; pass [text].")
        ids, mask = self.tokenizer.encode(texts)
        return self.tokenizer.decode(self.generate(ids, mask, **options))

    def _checked(self, input_ids: np.ndarray, attention_mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        ids = np.ascontiguousarray(input_ids, dtype=np.int64)
        mask = np.ones_like(ids) if attention_mask is None else np.ascontiguousarray(attention_mask, dtype=np.int64)
        if ids.ndim != 2 or ids.size == 0 or mask.shape != ids.shape:
            raise UserError(f"input_ids {ids.shape} and attention_mask {mask.shape} must both be [batch, source >= 1].")
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise UserError(f"input_ids run from {ids.min()} to {ids.max()}; the vocabulary has {self.vocab_size} ids.")
        return ids, mask


def load(folder: str | Path, target: str = "onnxruntime", **settings: Any) -> BundleModel:
    """Open a bundle on ``target``.

    Raises:
        UserError: not a bundle, an unknown target, or the target cannot run it here.
    """
    find_backend(target)
    return open_model(Path(folder), Manifest.read(Path(folder)), target, **settings)


def open_model(folder: Path, manifest: Manifest, target: str = "onnxruntime", **settings: Any) -> BundleModel:
    """Open the bundle in ``folder`` under a manifest that need not be written yet; raises as ``load``."""
    return BundleModel(folder, manifest, find_backend(target).open(folder, manifest, **settings))

"""The encoder's half of a loaded bundle: hidden states, sentence embeddings. Imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t5edge.bundle.architecture import Architecture
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.ports import EMBEDDING, LABEL_LOGITS, SPAN_LOGITS
from t5edge.bundle.records import SentenceFacts
from t5edge.errors import UserError
from t5edge.runtime.batches import BATCH_TOKENS, batches
from t5edge.runtime.inputs import PROMPT, as_ids, as_mask, check_memory
from t5edge.runtime.tokenizer import BundleTokenizer

if TYPE_CHECKING:
    from t5edge.runtime.generation.step import Tokens
    from t5edge.runtime.onnxruntime.arithmetic import Arithmetic


class BundleEncoder:
    """What every bundle can do."""

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
        for batch, ids, mask in self._padded(rows):
            hidden = self.encode_ids(ids, mask)
            found |= {index: hidden[place, : len(rows[index])] for place, index in enumerate(batch)}
        return [found[index] for index in range(len(texts))]

    def encode_ids(self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
        """The encoder's last hidden state, float32 [batch, source, d_model].

        ``input_ids``, ``attention_mask`` int [batch, source]. Without a mask every token counts, padding too.

        Raises:
            UserError: ids outside the vocabulary, wrong shapes or dtypes, or more than the memory holds.
        """
        return self._outputs(input_ids, attention_mask)["last_hidden_state"].astype(np.float32)

    def embed(self, texts: Sequence[str], *, prompt: str | None = None, prompt_name: str | None = None) -> np.ndarray:
        """The embedding of each text, float32 [texts, dimension], as ``SentenceTransformer.encode`` gives it.

        ``prompt`` is put before every text; ``prompt_name`` names one of the model's own. Without either the model's
        default prompt is, if it has one; ``prompt=""`` is none.

        Raises:
            UserError: the bundle makes no embeddings, has no tokenizer or no such prompt; as the tokenizer.
        """
        facts = self._sentence()
        if isinstance(texts, str):
            raise UserError("embed takes a list of texts, not one string; pass [text].")
        before = _prompt(facts, prompt, prompt_name)
        rows = [self._cut(row, facts) for row in self.tokenizer.ids(_lower([before + text for text in texts], facts))]
        left_out = 0
        if before and not facts.include_prompt:
            (alone,) = self.tokenizer.ids(_lower([before], facts))
            left_out = len(self._cut(alone, facts)) - (alone[-1] == self.architecture.eos_token_id)
        found = np.empty((len(rows), facts.dimension), np.float32)
        for batch, ids, mask in self._padded(rows):
            mask[:, :left_out][mask[:, :left_out] > 0] = PROMPT
            found[batch] = self.embed_ids(ids, mask)
        return found

    def embed_ids(self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
        """The same of ``input_ids`` int [batch, source], float32 [batch, dimension].

        ``attention_mask`` int [batch, source]: 1 for text, 0 for padding. Of a model that leaves prompts out of the
        pooling 2 marks a prompt's tokens.

        Raises:
            UserError: the bundle makes no embeddings; as ``encode_ids``.
        """
        self._sentence()
        return self._outputs(input_ids, attention_mask)[EMBEDDING]

    def classify(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The logits of each text, float32 [labels], or of its tokens, [tokens, labels], end token included.

        ``manifest.labels`` names the labels.

        Raises:
            UserError: the bundle has no such head, or no tokenizer; as the tokenizer.
        """
        return [logits for (logits,) in self._by_text("classify", texts, ("tokens", "text"))]

    def classify_ids(self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
        """The same of ids and mask, int [batch, source]: float32 [batch, labels] or [batch, source, labels].

        Raises:
            UserError: the bundle has no such head, a text without its end token; as ``encode_ids``.
        """
        self._require_head("tokens", "text")
        return self._outputs(input_ids, attention_mask)[LABEL_LOGITS]

    def span_logits(self, texts: Sequence[str]) -> list[tuple[np.ndarray, ...]]:
        """``start_logits`` and ``end_logits`` of each text, float32 [tokens] both, its end token included.

        Raises:
            UserError: the bundle finds no spans, or has no tokenizer; as the tokenizer.
        """
        return self._by_text("span_logits", texts, ("span",))

    def span_logits_ids(
        self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same of ``input_ids``, ``attention_mask`` int [batch, source]: float32 [batch, source] both.

        Raises:
            UserError: the bundle finds no spans; as ``encode_ids``.
        """
        self._require_head("span")
        found = self._outputs(input_ids, attention_mask)
        return found[SPAN_LOGITS[0]], found[SPAN_LOGITS[1]]

    def _by_text(self, name: str, texts: Sequence[str], heads: tuple[str, ...]) -> list[tuple[np.ndarray, ...]]:
        """The head's outputs of each text, without padding."""
        if isinstance(texts, str):
            raise UserError(f"{name} takes a list of texts, not one string; pass [text].")
        self._require_head(*heads)
        names = SPAN_LOGITS if "span" in heads else (LABEL_LOGITS,)
        rows, found = self.tokenizer.ids(texts), dict[int, tuple[np.ndarray, ...]]()
        by_token = self.architecture.head != "text"
        for batch, ids, mask in self._padded(rows):
            outputs = self._outputs(ids, mask)
            for place, index in enumerate(batch):
                length = slice(len(rows[index]) if by_token else None)
                found[index] = tuple(outputs[output][place][length] for output in names)
        return [found[index] for index in range(len(texts))]

    def _require_head(self, *heads: str) -> None:
        if self.architecture.head not in heads:
            what = "finds no spans" if "span" in heads else "classifies nothing"
            raise UserError(f"'{self.folder}' {what}; call encode() for its hidden states.")

    def _outputs(self, input_ids: np.ndarray, attention_mask: np.ndarray | None) -> dict[str, np.ndarray]:
        facts = self.manifest.sentence
        ids = as_ids("input_ids", input_ids, self.vocab_size)
        mask = as_mask(attention_mask, ids, prompts=facts is not None and not facts.include_prompt)
        if self.architecture.head == "text" and not (ids == self.architecture.eos_token_id).any(axis=1).all():
            raise UserError("a text has no end token, at which it is classified; end every row with it.")
        check_memory(self.architecture, len(ids), ids.shape[1], 0)
        return dict(self.step_model.hidden_and_cross(ids, mask))

    def _sentence(self) -> SentenceFacts:
        if self.manifest.sentence is None:
            raise UserError(f"'{self.folder}' makes no sentence embeddings; call encode() for its hidden states.")
        return self.manifest.sentence

    def _cut(self, row: list[int], facts: SentenceFacts) -> list[int]:
        """At most ``max_length`` ids; the end token stays the last."""
        most = facts.max_length
        if most is None or len(row) <= most:
            return row
        return [*row[: most - 1], row[-1]] if row[-1] == self.architecture.eos_token_id else row[:most]

    def _padded(self, rows: Sequence[list[int]]) -> Iterator[tuple[list[int], Tokens, Tokens]]:
        """Batches of rows of ids that the memory, and engines, take: indices, ids and mask."""
        limits = getattr(self.step_model, "limits", None)
        least = -(-BATCH_TOKENS // limits.max_batch) if limits else 1  # as many tokens does a row count at least
        for batch in batches([max(least, len(row)) for row in rows], BATCH_TOKENS):
            yield batch, *self.tokenizer.pad([rows[index] for index in batch])


def _prompt(facts: SentenceFacts, prompt: str | None, name: str | None) -> str:
    """What is put before every text."""
    name = facts.default_prompt if name is None else name
    if prompt is not None or name is None:
        return prompt or ""
    if name not in facts.prompts:
        known = f"known are {', '.join(facts.prompts)}" if facts.prompts else "it has none"
        raise UserError(f"the model has no prompt '{name}'; {known}; or give the text itself with prompt.")
    return facts.prompts[name]


def _lower(texts: list[str], facts: SentenceFacts) -> list[str]:
    return [text.lower() for text in texts] if facts.lower_case else texts

"""Text to padded batches of ids and back, with the bundle's ``tokenizer.json``; needs the tokenizers package only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from t5edge.errors import UserError

MOST_CHARACTERS = 1 << 20
"""Of one text: no model attends to as many tokens as that makes, and the tokenizer would take minutes and gigabytes."""


def pad(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[np.ndarray, np.ndarray]:
    """``input_ids`` and ``attention_mask`` of rows of ids, int64 [batch, longest], padded on the right.

    Ids below 0, which name learnt prefixes, are masked.
    """
    ids = np.full((len(rows), max(1, *map(len, rows))), pad_token_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = ids[index, : len(row)] >= 0
    return ids, mask


class BundleTokenizer:
    """The tokenizer of a bundle: adds the end token, pads to the longest of the batch."""

    def __init__(self, folder: Path, pad_token_id: int) -> None:
        """Raises: UserError when the bundle has no tokenizer."""
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(
                f"'{folder}' has no tokenizer.json (random weights have no tokenizer); call generate() with token ids."
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing more specific
            raise UserError(f"'{path}' cannot be read ({str(error)[:200]}); export the bundle again.") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._pad = pad_token_id

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, the end token last.

        Raises:
            UserError: there is no text, or one of them is no text or far too long.
        """
        if not len(texts):
            raise UserError("there is no text to encode; pass at least one.")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"text {index + 1} is {type(text).__name__}; pass a list of texts (str).")
            if len(text) > MOST_CHARACTERS:
                raise UserError(f"text {index + 1} has {len(text):,} characters; {MOST_CHARACTERS:,} are the most.")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise UserError(f"text {index + 1} holds bytes that are not UTF-8; convert it to UTF-8.") from error
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]

    @property
    def vocabulary(self) -> dict[str, int]:
        """The id of every token, added ones included."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        return vocabulary

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """See ``pad``."""
        return pad(rows, self._pad)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """``input_ids`` and ``attention_mask``, int64 [batch, longest], padded on the right."""
        return self.pad(self.ids(texts))

    def decode(self, tokens: np.ndarray, skip_special_tokens: bool = True) -> list[str]:
        """Texts of int64 [batch, length]; special tokens (end, padding, sentinels) are left out unless asked for."""
        texts: list[str] = self._tokenizer.decode_batch(tokens.tolist(), skip_special_tokens=skip_special_tokens)
        return texts

    def pieces(self, row: Sequence[int]) -> tuple[str, ...]:
        """The pieces of one row of ids; of an id that the tokenizer lacks the number."""
        return tuple(self._tokenizer.id_to_token(token) or f"<{token}>" for token in row)

    def text(self, row: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of one row of ids."""
        text: str = self._tokenizer.decode(list(row), skip_special_tokens=skip_special_tokens)
        return text

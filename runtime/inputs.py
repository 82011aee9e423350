"""What a caller hands to a loaded model, checked before anything runs: ids, masks, sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from t5edge.errors import UserError

if TYPE_CHECKING:
    from t5edge.bundle.architecture import Architecture
    from t5edge.runtime.generation.step import Tokens

IGNORED = -100
"""Label of a position that does not count, in PyTorch and transformers."""

PROMPT = 2
"""In the attention mask of a sentence encoder that pools no prompts, at a prompt's tokens."""

USABLE = 0.9
"""Share of the free memory that one call may ask for."""


def as_ids(name: str, given: Any, vocab_size: int, lowest: int = 0) -> Tokens:
    """Token ids as contiguous int64 [batch, length], from ``lowest`` to below ``vocab_size``.

    Raises:
        UserError: not whole numbers, not two axes, empty, or an id outside the vocabulary.
    """
    ids = _integers(name, given)
    if ids.ndim != 2 or ids.size == 0:
        raise UserError(f"{name} has shape {list(ids.shape)}; [batch, length], at least one by one, is needed.")
    if ids.min() < lowest or ids.max() >= vocab_size:
        raise UserError(
            f"{name} run from {ids.min()} to {ids.max()}; the vocabulary has {vocab_size - lowest} ids, "
            f"{lowest} to {vocab_size - 1}."
        )
    return ids


def as_labels(name: str, given: Any, vocab_size: int) -> Tokens:
    """Target ids as ``as_ids`` has them, and ``IGNORED`` where nothing counts.

    Raises:
        UserError: as ``as_ids``, or a row in which nothing counts.
    """
    labels = _integers(name, given)
    counted = labels != IGNORED
    as_ids(name, np.where(counted, labels, 0), vocab_size)
    empty = np.flatnonzero(~counted.any(axis=1))
    if empty.size:
        raise UserError(f"{name}, row {empty[0] + 1} of {len(labels)} is empty; give it at least one id.")
    return labels


def as_mask(given: Any, ids: Tokens, *, prompts: bool = False) -> Tokens:
    """The attention mask of ``ids`` as int64 of their shape, ones where none is given.

    ``prompts``: whether ``PROMPT`` is allowed in it.

    Raises:
        UserError: not whole numbers, another shape, or values beside 0 and 1.
    """
    if given is None:
        return np.ones_like(ids)
    mask = _integers("attention_mask", given)
    if mask.shape != ids.shape:
        raise UserError(
            f"attention_mask has shape {list(mask.shape)} and input_ids {list(ids.shape)}; give every token an entry."
        )
    if not np.isin(mask, (0, 1, PROMPT) if prompts else (0, 1)).all():
        raise UserError(f"attention_mask runs from {mask.min()} to {mask.max()}; 1 for text and 0 for padding.")
    return mask


def _integers(name: str, given: Any) -> Tokens:
    try:
        array = np.asarray(given)
    except ValueError as error:  # rows of different length
        raise UserError(f"{name} is no rectangular array ({error}); pad its rows to one length.") from error
    if not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"{name} is an array of {array.dtype}; whole numbers are needed, such as np.int64.")
    return np.ascontiguousarray(array, dtype=np.int64)


def check_memory(architecture: Architecture, rows: int, source: int, target: int) -> None:
    """Refuse a call that does not fit in the free memory, before it asks for it.

    ``rows``: sentences times beams or samples; ``source`` and ``target``: tokens. Counted, at 4 bytes a number: the
    scores of one encoder layer's attention, keys and values of all decoder layers, one step's logits.

    Raises:
        UserError: with the figures.
    """
    import psutil

    a = architecture
    scores = 2 * rows * a.num_heads * source * source
    cache = 2 * a.decoder_layers * rows * a.inner_dim * (source + target)
    needed = 4 * (scores + cache + rows * a.vocab_size) + 8 * rows * target
    free = psutil.virtual_memory().available
    if needed > USABLE * free:
        raise UserError(
            f"{rows} rows (sentences times beams) of {source} source and up to {target} target tokens need about "
            f"{needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free; send less at once, or lower num_beams or "
            "max_new_tokens."
        )

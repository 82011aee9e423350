"""Texts into batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from t5edge.errors import UserError

if TYPE_CHECKING:
    from t5edge.bundle.architecture import Architecture
    from t5edge.runtime.tokenizer import BundleTokenizer

TextsT = TypeVar("TextsT", bound=Iterable[str | int])

BATCH_TOKENS = 4096
"""Most source tokens of a batch of ``generate_text``, padding included, beams counted as rows; of scores target tokens
too."""


class LoadedModel(Protocol):
    """A loaded bundle, as far as what feeds it texts in batches needs it."""

    step_model: Any

    @property
    def architecture(self) -> Architecture: ...

    @property
    def tokenizer(self) -> BundleTokenizer: ...

    @property
    def vocab_size(self) -> int: ...


def check_pairs(name: str, count: int, other: str, expected: int) -> None:
    """Raises: UserError when there are not as many of one as of the other."""
    if count != expected:
        raise UserError(f"{name} has {count} rows and {other} {expected}; give both as many.")


def listed(texts: TextsT) -> TextsT:
    """Raises: UserError when ``texts`` is one string."""
    if isinstance(texts, str):
        raise UserError("this takes a list of texts, not one string; pass [text].")
    return texts


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

"""Which graphs a bundle has; loads nothing, so that the options can name it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """Which graphs a bundle has besides encoder and decoder.

    Attributes:
        cache: how the decoder of engines keeps keys and values: concat, in-place or both.
        layout: t5edge, or optimum for its graphs beside ours.
        max_target_length: capacity of the engines' in-place cache.
    """

    cache: str
    layout: str
    max_target_length: int

"""Drafts copied from the source and from what was generated, as corrections, summaries and normalizations copy.

The last tokens of a row are looked up in its source and in its own output; what followed them there is the draft. In
the source, the place behind the last one copied from wins; after a token that differs there, copying goes on behind it.

Source: Saxena 2023, "Prompt Lookup Decoding"; names are those of transformers. There, an encoder-decoder model is
looked up in its own output only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

DEFAULT_NGRAM = 2
"""Longest match that is looked for, as in transformers."""


@dataclass
class Lookup:
    """One row's text: ``source``, then a gap, then its output.

    ``places`` has, for every n-gram up to ``longest``, where the tokens behind it stand, in order.
    """

    source: Sequence[int]
    longest: int = DEFAULT_NGRAM
    text: list[int] = field(default_factory=list)
    places: dict[tuple[int, ...], list[int]] = field(default_factory=dict)
    next_copy: int = 0

    def __post_init__(self) -> None:
        for token in self.source:
            self._append(token, 0)
        self.text.append(-1)
        self.start = len(self.text)

    def extend(self, tokens: Iterable[int]) -> None:
        """The row goes on with ``tokens``."""
        for token in tokens:
            self._append(token, self.start)
            self.next_copy += 1

    def draft(self, most: int) -> tuple[list[int], int]:
        """Up to ``most`` tokens that may come next, and the length of the match: 0 without one."""
        found, size = self._find()
        if found < self.start:
            self.next_copy = found
            return self.text[found : min(found + most, self.start - 1)], size
        return self.text[found : found + most], size

    def _find(self) -> tuple[int, int]:
        """Where to copy from: a long match, else where copying was, else a match of one token, else nowhere."""
        output = len(self.text) - self.start
        for size in range(min(self.longest, output), 0, -1):
            if size == 1 and self.next_copy < self.start - 1:
                return self.next_copy, 0
            places = self.places.get(tuple(self.text[-size:]), [])
            if len(places) > 1 or (places and places[0] < len(self.text)):
                return self._nearest(places), size
        return (self.next_copy, 0) if self.next_copy < self.start - 1 else (len(self.text), 0)

    def _nearest(self, places: list[int]) -> int:
        """The first place in the source that is not before the next copy, else the last one there, else the latest."""
        behind = bisect_left(places, self.start)
        if behind:
            return places[min(bisect_left(places, self.next_copy, 0, behind), behind - 1)]
        return places[-2] if places[-1] == len(self.text) else places[-1]

    def _append(self, token: int, start: int) -> None:
        self.text.append(token)
        end = len(self.text)
        for size in range(1, min(self.longest, end - start) + 1):
            self.places.setdefault(tuple(self.text[end - size :]), []).append(end)

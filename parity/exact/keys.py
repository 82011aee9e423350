"""The names of stored tensors, read back: which checkpoint tensors one is made of, and how.

    encoder.block.0.layer.0.layer_norm.weight               a vector as it is
    T(a.weight+b.weight*0.25)                               stacked rows, a factor each, transposed
    int8.values(T(a.weight)~r1f.c2e)                         integers of it, its channels times powers of two
    int8.values(shared.weight)                              integers of rows as they are, a scale for each
    distance(decoder...relative_attention_bias.weight,129,-32768.0)

The exporter writes these (``key`` of its expressions). They are read here by a parser of their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

QUANTIZED = re.compile(
    r"int(?P<bits>[48])(?:x(?P<block>\d+))?(?:\.b?float16)?\.(?P<part>values|scales)\((?P<base>.*)\)"
)
DISTANCE = re.compile(r"distance\((?P<source>[^,]+),(?P<count>\d+),(?P<masked>[^,]+)\)")
SMOOTHED = re.compile(r"~(?:r(?P<rows>[0-9a-f]+))?\.?(?:c(?P<columns>[0-9a-f]+))?$")
EXPONENTS = "exponents."
TRANSPOSED = re.compile(r"T\((?P<inner>.*)\)")


@dataclass(frozen=True)
class StackKey:
    """Checkpoint tensors stacked along their rows. ``sources``: name and factor of each.

    ``rows``, ``columns``: the stack is multiplied by powers of two along its first axis, its second; names of the
    tensors that hold their exponents.
    """

    sources: tuple[tuple[str, float], ...]
    transposed: bool = False
    rows: str = ""
    columns: str = ""

    @property
    def smoothed(self) -> bool:
        return bool(self.rows or self.columns)


@dataclass(frozen=True)
class DistanceKey:
    """A position bias by clipped distance, [heads, ``count``]; ``masked``: one more column hides later keys."""

    source: str
    count: int
    masked: bool


@dataclass(frozen=True)
class StoredKey:
    """``part``: "values" or "scales" of integers of ``bits``, ``block`` rows to a scale; empty for plain floats."""

    base: StackKey | DistanceKey
    matrix: str
    part: str = ""
    bits: int = 0
    block: int = 0


def read_key(name: str) -> StoredKey | None:
    """The key behind a tensor's name; None where it is none. Equal ``matrix``: values and scales of one matrix."""
    quantized = QUANTIZED.fullmatch(name)
    if quantized is None:
        base = _read_base(name)
        return None if base is None else StoredKey(base, name)
    base = _read_base(quantized["base"])
    if base is None:
        return None
    bits, block = int(quantized["bits"]), int(quantized["block"] or 0)
    return StoredKey(base, name.replace(".scales(", ".values(", 1), quantized["part"], bits, block)


def _read_base(text: str) -> StackKey | DistanceKey | None:
    distance = DISTANCE.fullmatch(text)
    if distance is not None:
        return DistanceKey(distance["source"], int(distance["count"]), distance["masked"] != "None")
    marks = SMOOTHED.search(text)
    plain = SMOOTHED.sub("", text)
    rows, columns = (EXPONENTS + marks[axis] if marks and marks[axis] else "" for axis in ("rows", "columns"))
    transposed = TRANSPOSED.fullmatch(plain)
    sources = [_read_source(part) for part in (transposed["inner"] if transposed else plain).split("+")]
    known = tuple(source for source in sources if source is not None)
    return StackKey(known, transposed is not None, rows, columns) if len(known) == len(sources) else None


def _read_source(text: str) -> tuple[str, float] | None:
    name, _, factor = text.partition("*")
    try:
        return name, float(factor) if factor else 1.0
    except ValueError:
        return None

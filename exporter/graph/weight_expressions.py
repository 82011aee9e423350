"""The numbers of a weight expression: read from the checkpoint, stacked, scaled, cast."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import TYPE_CHECKING

import numpy as np

from t5edge.errors import UserError
from t5edge.kernels.weights import Source, StackedWeight, WeightExpression

if TYPE_CHECKING:
    import torch


Read = Callable[[str], "torch.Tensor"]
Rows = Callable[[str], Iterable["torch.Tensor"]]
"""A tensor of the checkpoint in slices of rows, one after the other."""


@dataclass(frozen=True)
class Factors:
    """A power of two for each channel, 2^exponent: multiplying by them and dividing again changes no bit.

    ``exponents`` are int8, one byte a channel.
    """

    exponents: bytes

    @property
    def key(self) -> str:
        return hashlib.sha256(self.exponents).hexdigest()[:12]

    @property
    def inverse(self) -> Factors:
        return Factors((-self.array()).tobytes())

    def array(self) -> np.ndarray:
        """The exponents, int8 [channels]."""
        return np.frombuffer(self.exponents, dtype=np.int8)

    def values(self) -> torch.Tensor:
        """The factors, float32 [channels]."""
        import torch

        return torch.from_numpy(np.exp2(self.array().astype(np.float32)))


@dataclass(frozen=True)
class Smoothed:
    """A stack whose channels are multiplied by powers of two: ``rows`` along its first axis, ``columns`` its second."""

    base: StackedWeight
    rows: Factors | None = None
    columns: Factors | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.base.sources

    @property
    def origin(self) -> str:
        return self.base.key

    @property
    def key(self) -> str:
        marks = [f"{mark}{factors.key}" for mark, factors in (("r", self.rows), ("c", self.columns)) if factors]
        return f"{self.base.key}~{'.'.join(marks)}"

    def prefixed(self, prefix: str) -> Smoothed:
        return replace(self, base=self.base.prefixed(prefix))

    @property
    def transposed(self) -> bool:
        return self.base.transposed

    def transpose(self) -> Smoothed:
        return Smoothed(self.base.transpose(), self.columns, self.rows)


@dataclass(frozen=True)
class Exponents:
    """The exponents of factors, int8 [channels], stored beside the weights that were multiplied by them.

    No graph reads them: with them a weight is compared with the checkpoint's whatever was rounded away.
    """

    factors: Factors

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.factors.exponents),)

    @property
    def key(self) -> str:
        return f"{EXPONENTS}{self.factors.key}"

    def prefixed(self, prefix: str) -> Exponents:
        return self


EXPONENTS = "exponents."
Matrix = StackedWeight | Smoothed
"""Expressions of weights that come from the checkpoint."""


def cast(tensor: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """``tensor`` in ``dtype``.

    Raises:
        UserError: a value is NaN, infinite, or beyond the range of ``dtype``.
    """
    import torch

    lowest, highest = (float(bound) for bound in torch.aminmax(tensor))
    largest = max(-lowest, highest)
    if not largest <= torch.finfo(dtype).max:  # NaN compares false
        value = "NaN" if math.isnan(largest) else f"{largest:g}"
        raise UserError(
            f"{name} holds {value}, beyond the range of {str(dtype).removeprefix('torch.')}; "
            "export in bf16 or fp32, or fix the checkpoint."
        )
    return tensor.to(dtype)


@dataclass(frozen=True)
class DistanceTable:
    """Position bias by clipped distance, ``[heads, distances]``: the bucket lookup done once, at export.

    ``distances`` are key position minus query position, ``-max_distance .. last``; with ``causal`` one more column
    stands for every later key and holds ``masked`` (T5: causality is part of the bias).
    """

    source: str
    buckets: tuple[int, ...]
    heads: int
    masked: float | None

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.heads, len(self.buckets) + (self.masked is not None))

    @property
    def key(self) -> str:
        return f"distance({self.source},{len(self.buckets)},{self.masked})"

    def prefixed(self, prefix: str) -> DistanceTable:
        return replace(self, source=prefix + self.source)


@dataclass(frozen=True)
class PlainTable:
    """A tensor of the checkpoint as it is, of prompts or a head: no point of quantization, whatever the precision."""

    name: str
    shape: tuple[int, ...]

    @property
    def key(self) -> str:
        return self.name

    def prefixed(self, prefix: str) -> PlainTable:
        return replace(self, name=prefix + self.name)


@singledispatch
def evaluate(expression: WeightExpression, read: Read) -> torch.Tensor:
    """The numbers of an expression, in the checkpoint's precision; the caller casts and writes them."""
    raise TypeError(f"{type(expression).__name__} has no evaluation")


@evaluate.register(StackedWeight)
def _(expression: StackedWeight, read: Read) -> torch.Tensor:
    """The stacked tensor."""
    import torch

    parts = [_scaled(read(source.name), source) for source in expression.sources]
    stacked = parts[0] if len(parts) == 1 else torch.cat(parts)
    return stacked.T if expression.transposed else stacked


def _scaled(tensor: torch.Tensor, source: Source) -> torch.Tensor:
    return tensor if source.scale == 1.0 else tensor.float() * source.scale


def stacked_rows(expression: StackedWeight, rows: Rows, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """The rows of a stack in ``dtype``, a slice after the other, as the checkpoint has them: not transposed.

    Raises:
        UserError: a value is NaN, infinite, or beyond the range of ``dtype``.
    """
    for source in expression.sources:
        for part in rows(source.name):
            yield cast(_scaled(part, source), dtype, source.name)


@evaluate.register(Smoothed)
def _(expression: Smoothed, read: Read) -> torch.Tensor:
    """The stack in float32, its channels multiplied."""
    tensor = evaluate(expression.base, read).float()
    if expression.rows is not None:
        tensor = tensor * expression.rows.values().reshape(-1, *[1] * (tensor.ndim - 1))
    return tensor if expression.columns is None else tensor * expression.columns.values()


@evaluate.register(Exponents)
def _(expression: Exponents, read: Read) -> torch.Tensor:
    import torch

    return torch.from_numpy(expression.factors.array().copy())


@evaluate.register(PlainTable)
def _(expression: PlainTable, read: Read) -> torch.Tensor:
    return read(expression.name)


@evaluate.register(DistanceTable)
def _(expression: DistanceTable, read: Read) -> torch.Tensor:
    """The table [heads, distances], float32."""
    import torch

    weight = read(expression.source).float()  # [buckets, heads]
    table = weight[torch.tensor(expression.buckets)].T
    if expression.masked is None:
        return table
    return torch.cat([table, torch.full((expression.heads, 1), expression.masked)], dim=1)

"""How each tensor of the graphs is made from tensors of the checkpoint, without holding any data.

A graph refers to its weights as ``PlannedTensor``: shape, dtype and a recipe. Fusions rewrite recipes (stack,
transpose, scale) and never touch numbers; the weights stage follows each recipe once, streaming.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import onnx_ir as ir

from exporter.errors import UserError

if TYPE_CHECKING:
    import torch

Read = Callable[[str], "torch.Tensor"]


@dataclass(frozen=True)
class Source:
    """One tensor of the checkpoint, times a power of two (exact) or a stated factor."""

    name: str
    scale: float = 1.0


class Recipe(Protocol):
    """What the weights stage needs to know of a tensor: where it comes from and how to make it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def key(self) -> str:
        """Equal keys mean equal numbers: such tensors are stored once."""
        ...

    def prefixed(self, prefix: str) -> Recipe:
        """The same recipe for another layer: ``prefix`` goes before every source name."""
        ...

    def build(self, read: Read) -> torch.Tensor:
        """Make the tensor in the checkpoint's precision; the caller casts and writes it."""
        ...


@dataclass(frozen=True)
class Stack:
    """Tensors ``[out_i, in]`` stacked along their rows, optionally transposed to MatMul's ``[in, sum(out_i)]``."""

    sources: tuple[Source, ...]
    rows: tuple[int, ...]
    columns: int | None
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        if self.columns is None:
            return (sum(self.rows),)
        stacked = (sum(self.rows), self.columns)
        return stacked[::-1] if self.transposed else stacked

    @property
    def key(self) -> str:
        parts = "+".join(s.name if s.scale == 1.0 else f"{s.name}*{s.scale!r}" for s in self.sources)
        return f"T({parts})" if self.transposed else parts

    @property
    def origin(self) -> str:
        """The key before any smoothing: what a quantization plan names the weight by."""
        return self.key

    def prefixed(self, prefix: str) -> Stack:
        return replace(self, sources=tuple(replace(s, name=prefix + s.name) for s in self.sources))

    def transpose(self) -> Stack:
        return replace(self, transposed=not self.transposed)

    def scaled(self, factors: dict[str, float]) -> Stack:
        """Multiply the named sources by a factor each (exact where it is a power of two)."""
        return replace(self, sources=tuple(replace(s, scale=s.scale * factors.get(s.name, 1.0)) for s in self.sources))

    def join(self, other: Stack) -> Stack:
        """Stack ``other`` below (for transposed ones: to the right of) this one; inputs must be equally wide."""
        if (self.columns, self.transposed) != (other.columns, other.transposed):
            raise ValueError(f"cannot join {self.key} {self.shape} and {other.key} {other.shape}")
        return replace(self, sources=self.sources + other.sources, rows=self.rows + other.rows)

    def build(self, read: Read, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The stacked tensor; with ``dtype`` each part is cast before the copies, which then move fewer bytes.

        Raises:
            UserError: a value is NaN, infinite, or beyond the range of ``dtype``.
        """
        import torch

        parts = []
        for source in self.sources:
            tensor = read(source.name)
            scaled = tensor if source.scale == 1.0 else tensor.float() * source.scale
            parts.append(scaled if dtype is None else cast(scaled, dtype, source.name))
        stacked = parts[0] if len(parts) == 1 else torch.cat(parts)
        return stacked.T if self.transposed else stacked


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

    base: Stack
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

    def build(self, read: Read) -> torch.Tensor:
        """The stack in float32, its channels multiplied."""
        tensor = self.base.build(read).float()
        if self.rows is not None:
            tensor = tensor * self.rows.values().reshape(-1, *[1] * (tensor.ndim - 1))
        return tensor if self.columns is None else tensor * self.columns.values()


Matrix = Stack | Smoothed
"""Recipes of weights that come from the checkpoint."""


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
            "export in bf16 or fp32, or mend the checkpoint."
        )
    return tensor.to(dtype)


def stack_of(name: str, shape: tuple[int, ...]) -> Stack:
    """The recipe of a checkpoint tensor taken as it is: ``[out, in]`` or ``[size]``."""
    return Stack((Source(name),), (shape[0],), shape[1] if len(shape) == 2 else None)


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

    def build(self, read: Read) -> torch.Tensor:
        import torch

        weight = read(self.source).float()  # [buckets, heads]
        table = weight[torch.tensor(self.buckets)].T
        if self.masked is None:
            return table
        return torch.cat([table, torch.full((self.heads, 1), self.masked)], dim=1)


class PlannedTensor(ir.LazyTensor):
    """A graph initializer that has a recipe instead of data."""

    def __init__(self, recipe: Recipe, dtype: ir.DataType, name: str) -> None:
        super().__init__(self._refuse, dtype=dtype, shape=ir.Shape(recipe.shape), name=name)
        self.recipe = recipe

    def _refuse(self) -> ir.TensorProtocol:
        raise RuntimeError(f"{self.name} has a recipe ({self.recipe.key}) and no data before the weights are written")


def planned_value(recipe: Recipe, dtype: ir.DataType, name: str) -> ir.Value:
    """A graph initializer value around a ``PlannedTensor``."""
    tensor = PlannedTensor(recipe, dtype, name)
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(recipe.shape), const_value=tensor)


def recipe_of(value: ir.Value | None) -> Recipe | None:
    """The recipe behind a value, or None when it is not a planned initializer."""
    tensor = None if value is None else value.const_value
    return tensor.recipe if isinstance(tensor, PlannedTensor) else None


def constant_value(array: np.ndarray, name: str) -> ir.Value:
    """A small initializer with data of its own (reshape targets, masks, split sizes)."""
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)

"""How each tensor of the graphs is made from tensors of the checkpoint, without holding any data.

A graph refers to its weights as ``PlannedTensor``: shape, dtype and an expression. Fusions rewrite expressions (stack,
transpose, scale) and never touch numbers; the weights stage follows each expression once, streaming.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import onnx_ir as ir

from t5edge.bundle.records import SENTENCE


@dataclass(frozen=True)
class Source:
    """One tensor of the checkpoint, times a power of two (exact) or a stated factor."""

    name: str
    scale: float = 1.0


class WeightExpression(Protocol):
    """What the weights stage needs to know of a tensor: where it comes from and how to make it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def key(self) -> str:
        """Equal keys mean equal numbers: such tensors are stored once."""
        ...

    def prefixed(self, prefix: str) -> WeightExpression:
        """The same expression for another layer: ``prefix`` goes before every source name."""
        ...


@dataclass(frozen=True)
class StackedWeight:
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

    def prefixed(self, prefix: str) -> StackedWeight:
        return replace(self, sources=tuple(replace(s, name=prefix + s.name) for s in self.sources))

    def transpose(self) -> StackedWeight:
        return replace(self, transposed=not self.transposed)

    def scaled(self, factors: dict[str, float]) -> StackedWeight:
        """Multiply the named sources by a factor each (exact where it is a power of two)."""
        return replace(self, sources=tuple(replace(s, scale=s.scale * factors.get(s.name, 1.0)) for s in self.sources))

    def join(self, other: StackedWeight) -> StackedWeight:
        """Stack ``other`` below (for transposed ones: to the right of) this one; inputs must be equally wide."""
        if (self.columns, self.transposed) != (other.columns, other.transposed):
            raise ValueError(f"cannot join {self.key} {self.shape} and {other.key} {other.shape}")
        return replace(self, sources=self.sources + other.sources, rows=self.rows + other.rows)


def stack_of(name: str, shape: tuple[int, ...]) -> StackedWeight:
    """The expression of a checkpoint tensor taken as it is: ``[out, in]`` or ``[size]``."""
    return StackedWeight((Source(name),), (shape[0],), shape[1] if len(shape) == 2 else None)


class PlannedTensor(ir.LazyTensor):
    """A graph initializer that has an expression instead of data."""

    def __init__(self, expression: WeightExpression, dtype: ir.DataType, name: str) -> None:
        super().__init__(self._refuse, dtype=dtype, shape=ir.Shape(expression.shape), name=name)
        self.expression = expression

    def _refuse(self) -> ir.TensorProtocol:
        raise RuntimeError(
            f"{self.name} has an expression ({self.expression.key}) and no data before the weights are written"
        )


def planned_value(expression: WeightExpression, dtype: ir.DataType, name: str) -> ir.Value:
    """A graph initializer value around a ``PlannedTensor``."""
    return ir.val(name, const_value=PlannedTensor(expression, dtype, name))


def is_behind_pooling(expression: StackedWeight) -> bool:
    """Whether a weight is read by what follows the pooling of a sentence encoder, and so stays in float32."""
    return expression.sources[0].name.startswith(SENTENCE)


def expression_of(value: ir.Value | None) -> WeightExpression | None:
    """The expression behind a value, or None when it is not a planned initializer."""
    tensor = None if value is None else value.const_value
    return tensor.expression if isinstance(tensor, PlannedTensor) else None

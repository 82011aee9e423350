"""One vector of a text's hidden states: pooling, dense layers, length 1; in float32 whatever the encoder computes in.

    hidden [batch, source, d_model], mask [batch, source] -> weights w [batch, source] -> sum over source of w * hidden

    mean                   1 / n at the n tokens of the text
    mean_sqrt_len_tokens   1 / sqrt(n)
    weightedmean           t / sum(t) at the token of position t, from 1 at the first token that is no padding
    cls, lasttoken         1 at the first token, at the last
    max                    the largest of each channel; no weights

As sentence-transformers' ``Pooling``, ``Dense`` and ``Normalize`` (6.2). Sums are no MatMul, which an engine may run in
TF32. Where a prompt is not pooled the mask is 2 at its tokens: they are seen, and are no tokens of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from t5edge.bundle.records import SentenceFacts, SentenceStep
from t5edge.kernels.values import as_int64, constant_value
from t5edge.kernels.weights import planned_value, stack_of

SMALLEST_SUM, SMALLEST_LENGTH = 1e-9, 1e-12
"""Divisors are no smaller: of the weights' sums, of lengths."""
Activation = Callable[[ir.tape.Tape, ir.Value], ir.Value]


def sentence_embedding(
    tape: ir.tape.Tape, hidden: ir.Value, width: int, mask: ir.Value, length: ir.Value, facts: SentenceFacts
) -> ir.Value:
    """[batch, dimension] float32 of float32 hidden states [batch, source, width] and the mask int64 [batch, source].

    ``length``: the number of source positions, a scalar int64.
    """
    pooling = Pooling.of(tape, mask, length, facts.include_prompt)
    pooled = [pooling.pooled(mode, hidden) for mode in facts.pooling]
    found = pooled[0] if len(pooled) == 1 else tape.op("Concat", pooled, {"axis": -1})
    width *= len(pooled)
    for step in facts.steps:
        found = _normalized(tape, found) if step.kind == "normalize" else _dense(tape, found, step, width)
        width = step.size
    return found


@dataclass(frozen=True)
class Pooling:
    """What all modes need: float32 [batch, source].

    Attributes:
        text: 1 at the tokens that are pooled, else 0.
        position: 1, 2, ... from the left, [source]; ``reverse``: the same from the right.
        seen: 1 at those that are no padding: ``text`` and a prompt's.
    """

    tape: ir.tape.Tape
    text: ir.Value
    seen: ir.Value
    position: ir.Value
    reverse: ir.Value

    @staticmethod
    def of(tape: ir.tape.Tape, mask: ir.Value, length: ir.Value, include_prompt: bool) -> Pooling:
        """``mask`` int64 [batch, source]: 1 at text, 2 at a prompt that is not pooled, 0 at padding."""

        def as_float(value: ir.Value) -> ir.Value:
            return tape.op("Cast", [value], {"to": ir.DataType.FLOAT})

        text = seen = as_float(tape.op("Cast", [mask], {"to": ir.DataType.BOOL}))
        if not include_prompt:
            text = as_float(tape.op("Equal", [mask, constant_value(as_int64(1), "text_mark")]))
        zero, one = (constant_value(np.array(number, np.int64), f"int_{number}") for number in (0, 1))
        index = as_float(tape.op("Range", [zero, length, one]))
        position = tape.op("Add", [index, _number(1.0)])
        return Pooling(tape, text, seen, position, tape.op("Sub", [as_float(length), index]))

    def pooled(self, mode: str, hidden: ir.Value) -> ir.Value:
        """[batch, d_model]."""
        if mode == "max":
            lowest = _number(float(np.finfo(np.float32).min))
            text = self.tape.op("Cast", [self._column(self.text)], {"to": ir.DataType.BOOL})
            kept = self.tape.op("Where", [text, hidden, lowest])
            return self.tape.op("ReduceMax", [kept, _axis(1)], {"keepdims": 0})
        weights = getattr(self, f"_{mode}")()
        weighted = self.tape.op("Mul", [hidden, self._column(weights)])
        return self.tape.op("ReduceSum", [weighted, _axis(1)], {"keepdims": 0})

    def _column(self, weights: ir.Value) -> ir.Value:
        """[batch, source, 1]."""
        return self.tape.op("Unsqueeze", [weights, _axis(2)])

    def _mean(self) -> ir.Value:
        return self.tape.op("Div", [self.text, self._sum(self.text)])

    def _mean_sqrt_len_tokens(self) -> ir.Value:
        return self.tape.op("Div", [self.text, self.tape.op("Sqrt", [self._sum(self.text)])])

    def _weightedmean(self) -> ir.Value:
        """Padding on the left does not count: it is as long as the distance of the first seen token from the left."""
        first = self._largest(self.tape.op("Mul", [self.seen, self.reverse]))
        padding = self.tape.op("Sub", [self._largest(self.reverse), first])
        weights = self.tape.op("Mul", [self.text, self.tape.op("Sub", [self.position, padding])])
        return self.tape.op("Div", [weights, self._sum(weights)])

    def _cls(self) -> ir.Value:
        return self._only(self.reverse)

    def _lasttoken(self) -> ir.Value:
        return self._only(self.position)

    def _only(self, order: ir.Value) -> ir.Value:
        """1 at the token of the text that is the last in an order, else 0."""
        ranked = self.tape.op("Mul", [self.text, order])
        chosen = self.tape.op("Equal", [ranked, self._largest(ranked)])
        return self.tape.op("Mul", [self.text, self.tape.op("Cast", [chosen], {"to": ir.DataType.FLOAT})])

    def _sum(self, weights: ir.Value) -> ir.Value:
        """[batch, 1]."""
        total = self.tape.op("ReduceSum", [weights, _axis(1)], {"keepdims": 1})
        return self.tape.op("Max", [total, _number(SMALLEST_SUM)])

    def _largest(self, values: ir.Value) -> ir.Value:
        """Over the last axis, which is kept."""
        return self.tape.op("ReduceMax", [values, _axis(-1)], {"keepdims": 1})


def _normalized(tape: ir.tape.Tape, vectors: ir.Value) -> ir.Value:
    length = tape.op("ReduceL2", [vectors, _axis(1)], {"keepdims": 1})
    return tape.op("Div", [vectors, tape.op("Max", [length, _number(SMALLEST_LENGTH)])])


def _dense(tape: ir.tape.Tape, vectors: ir.Value, step: SentenceStep, width: int) -> ir.Value:
    """``activation(x W^T + b)`` with W [out, in] as the checkpoint has it."""
    names = {"weight": (step.size, width)} | ({"bias": (step.size,)} if step.bias else {})
    planned = [stack_of(f"{step.weights}{name}", shape) for name, shape in names.items()]
    weights = [planned_value(expression, ir.DataType.FLOAT, expression.key) for expression in planned]
    found = tape.op("Gemm", [vectors, *weights], {"transB": 1})
    return found if step.activation is None else OPERATORS[step.activation](tape, found)


def _number(value: float) -> ir.Value:
    return constant_value(np.array(value, np.float32), f"float_{value}")


def _axis(axis: int) -> ir.Value:
    return constant_value(as_int64(axis), f"axes_{axis}")


def _op(name: str) -> Activation:
    return lambda tape, value: tape.op(name, [value])


OPERATORS: Mapping[str, Activation] = {
    "Tanh": _op("Tanh"),
    "ReLU": lambda tape, value: tape.op("Max", [value, _number(0.0)]),
    "GELU": _op("Gelu"),
    "Sigmoid": _op("Sigmoid"),
    "SiLU": lambda tape, value: tape.op("Mul", [value, tape.op("Sigmoid", [value])]),
}
"""Of ``ACTIVATIONS``."""

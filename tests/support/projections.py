"""Projections into heads, as they are traced."""

from __future__ import annotations

import onnx_ir as ir

from support.kernel_facts import FACTS
from support.onnx_graphs import Sketch

INNER = FACTS.inner_dim


def project(sketch: Sketch, x: ir.Value, name: str, d_kv: int = 8, perm: tuple[int, ...] = (0, 2, 1, 3)) -> ir.Value:
    y = sketch.op("MatMul", x, sketch.weight(name, INNER, FACTS.d_model))
    sizes = [sketch.op("Shape", x, start=0, end=1), sketch.op("Shape", x, start=1, end=2)]
    shape = sketch.op("Concat", *sizes, sketch.ints(-1), sketch.ints(d_kv), axis=0)
    return sketch.op("Transpose", sketch.op("Reshape", y, shape), perm=list(perm))

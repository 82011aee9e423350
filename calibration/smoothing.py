"""SmoothQuant with powers of two (Xiao et al. 2022, arXiv:2211.10438): outlier channels move from x into W, exactly.

    s_j = round2(max|X_j| ** alpha / max|W_j| ** (1 - alpha))          x @ W = (x / s) @ (diag(s) W)

    point            1 / s goes into                         s goes into
    qkv, wi         the RMSNorm in front                    rows of the packed matrix
    cross_q         the same                                rows of q
    o               columns of v (attention mixes rows,     rows of o
                    never channels)
    wo              columns of wi_1, or of wi: relu(x / s)  rows of wo
    cross_kv        a second RMSNorm of the encoder's end;  rows of every decoder layer's matrix
                    last_hidden_state keeps the first
    lm_head         the decoder's final RMSNorm             rows of lm_head, unless it is the token table

Deviation from the paper: s is rounded to a power of two, so that the float32 graph gives the same bits before and
after; alpha is searched per point, by the error of the rounded product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from t5edge.calibration.collect import Sample
from t5edge.calibration.observers import LARGEST, Observer, round_values
from t5edge.calibration.points import OUTPUT, QuantizationPoint, matrix_of, point_name
from t5edge.calibration.quantize import TABLE
from t5edge.calibration.scheme import Scheme, round_columns
from t5edge.exporter.graph.weight_expressions import Factors, Smoothed
from t5edge.kernels.values import constant_value
from t5edge.kernels.weights import StackedWeight, expression_of, planned_value

if TYPE_CHECKING:
    import torch

ALPHAS = (0.35, 0.5, 0.65, 0.8)
SEARCH_ROWS = 256
"""Tokens on which the error of a product is judged."""
MAX_EXPONENT = 12
SMOOTHED = ("qkv", "cross_q", "wi", "o", "wo", "cross_kv", OUTPUT)
"""Roles with something in front that takes 1 / s. A decoder's ``o`` has not: its v is cached and leaves the graph."""
NORMED = (".qkv", ".cross_q", ".wi", ".cross_kv", OUTPUT)
"""Suffixes of the names of points with a norm in front."""


@dataclass(frozen=True)
class Choice:
    """What was chosen for one point: ``scale`` of its input, ``factors`` s [in], and relative errors of x @ W.

    Where only weights are rounded ``scale`` is None; smoothing then evens out the rows of W (as AWQ does, Lin et al.
    2023, arXiv:2306.00978).
    ``plain_error`` is the error without smoothing.
    """

    scale: float | None
    factors: Factors | None
    alpha: float | None
    error: float
    plain_error: float


def can_smooth(point: QuantizationPoint) -> bool:
    """Whether 1 / s can be folded in front of this point."""
    return point.role in SMOOTHED and (point.role != "o" or point.graph == "encoder") and TABLE not in point.sources


def choose(
    sample: Sample, weights: Sequence[torch.Tensor], scheme: Scheme, observer: Observer | None, smooth: bool = True
) -> Choice:
    """Search alpha for one input and the matrices [in, out] that read it (scale and factors are theirs in common).

    ``observer`` None rounds only the weights.
    """
    rows = _thinned(sample.rows)
    exact = [rows @ weight for weight in weights]
    best = plain = _judged(sample, rows, exact, weights, scheme, observer, None, None)
    weight_max = _row_max(weights)
    for alpha in ALPHAS if smooth else ():
        factors = smoothing_factors(sample.channel_max, weight_max, alpha)
        found = _judged(sample, rows, exact, weights, scheme, observer, factors, alpha)
        best = min(best, found, key=lambda choice: choice.error)
    return replace(best, plain_error=plain.error)


def smoothing_factors(channel_max: torch.Tensor, weight_max: torch.Tensor, alpha: float) -> Factors:
    """Powers of two for channels with the given largest magnitudes [in], their geometric middle near 1."""
    import torch

    tiny = 1e-30
    exponents = alpha * torch.log2(channel_max.clamp(min=tiny)) - (1 - alpha) * torch.log2(weight_max.clamp(min=tiny))
    exponents = (exponents - exponents.median()).round().clamp(-MAX_EXPONENT, MAX_EXPONENT)
    exponents[channel_max == 0] = 0
    return Factors(exponents.to(torch.int8).numpy().tobytes())


def _thinned(rows: torch.Tensor) -> torch.Tensor:
    import torch

    return rows[torch.linspace(0, len(rows) - 1, min(SEARCH_ROWS, len(rows))).long()]


def _row_max(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.stack([weight.abs().amax(dim=1) for weight in weights]).amax(dim=0)


def _judged(
    sample: Sample,
    rows: torch.Tensor,
    exact: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    scheme: Scheme,
    observer: Observer | None,
    factors: Factors | None,
    alpha: float | None,
) -> Choice:
    """The choice of these factors, with its relative error over ``rows``."""
    import torch

    s = torch.ones(len(sample.channel_max)) if factors is None else factors.values()
    scale = None if observer is None else _scale(sample, observer, s)
    rounded = rows / s if scale is None else round_values(rows / s, scale)
    wrong = size = 0.0
    for weight, product in zip(weights, exact, strict=True):
        difference = rounded @ round_columns(weight * s[:, None], scheme) - product
        wrong += float((difference * difference).sum())
        size += float((product * product).sum())
    error = (wrong / size) ** 0.5 if size else 0.0
    return Choice(scale, factors, alpha, error, error)


def _scale(sample: Sample, observer: Observer, s: torch.Tensor) -> float:
    """The scale of the input divided by ``s`` [in]."""
    largest = float((sample.channel_max / s).max())
    return max(observer(sample.rows / s, largest), 1e-30) / LARGEST


def apply_smoothing(model: ir.Model, factors: Mapping[str, Factors]) -> None:
    """Rewrite the expressions of one graph: ``factors`` by point name. The float32 graph computes the same bits.

    Must run before ``quantize_weights``: afterwards a MatMul reads a DequantizeLinear.
    """
    graph = model.graph
    columns = _column_factors(graph, factors)
    norms: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        expression = matrix_of(node) if node.op_type == "MatMul" else None
        if expression is None:
            continue
        name = point_name(node, expression)
        rows = factors.get(name)
        if rows is not None and name.endswith(NORMED):
            _smooth_norm(graph, node, rows, norms)
        if rows is not None or name in columns:
            _replace_weight(graph, node, Smoothed(expression, rows, columns.get(name)))
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        graph.initializers.pop(name)


def _column_factors(graph: ir.Graph, factors: Mapping[str, Factors]) -> dict[str, Factors]:
    """1 / s of ``o`` on the last third of qkv's columns, 1 / s of ``wo`` on the last columns of wi."""
    found: dict[str, Factors] = {}
    for node in graph:
        expression = matrix_of(node) if node.op_type == "MatMul" else None
        name = "" if expression is None else point_name(node, expression)
        block, _, role = name.rpartition(".")
        follower = factors.get(f"{block}.{ {'qkv': 'o', 'wi': 'wo'}.get(role) }")
        if expression is not None and follower is not None:
            untouched = np.zeros(expression.shape[1] - len(follower.exponents), np.int8)
            found[name] = Factors(untouched.tobytes() + follower.inverse.exponents)
    return found


def _replace_weight(graph: ir.Graph, node: ir.Node, expression: Smoothed) -> None:
    old = node.inputs[1]
    assert old is not None
    assert old.dtype is not None
    weight = planned_value(expression, old.dtype, expression.key)
    graph.register_initializer(weight)
    node.replace_input_with(1, weight)


def _smooth_norm(graph: ir.Graph, matmul: ir.Node, factors: Factors, norms: dict[ir.Value, ir.Value]) -> None:
    """Let ``matmul`` read the norm divided by ``factors``; a norm that others read too is doubled.

    Where the norm is in another graph, which hands its output in, that input is divided: the same bits.
    """
    normed = matmul.inputs[0]
    assert normed is not None
    if normed not in norms:
        norm = normed.producer()
        norms[normed] = _divided_input(graph, normed, factors) if norm is None else _divided_norm(graph, norm, factors)
    matmul.replace_input_with(0, norms[normed])


def _divided_input(graph: ir.Graph, hidden: ir.Value, factors: Factors) -> ir.Value:
    """A graph input [batch, source, d_model] divided by ``factors``."""
    assert hidden.dtype is not None
    name = f"{hidden.name}/smoothed"
    divisors = constant_value(factors.inverse.values().numpy().astype(hidden.dtype.numpy()), f"{name}/factors")
    graph.register_initializer(divisors)
    tape = ir.tape.Tape()
    output = tape.op("Mul", [hidden, divisors])
    tape.nodes[0].name, output.name = name, f"{name}:0"
    graph.insert_before(graph[0], tape.nodes)
    return output


def _divided_norm(graph: ir.Graph, norm: ir.Node, factors: Factors) -> ir.Value:
    """The output of a copy of ``norm`` whose weight is divided; an unused original goes with the other leftovers."""
    assert norm.op_type == "RMSNormalization", f"{norm.name} is not a norm"
    base, old = expression_of(norm.inputs[1]), norm.inputs[1]
    assert isinstance(base, StackedWeight)
    assert old is not None
    assert old.dtype is not None
    expression = Smoothed(base, rows=factors.inverse)
    weight = planned_value(expression, old.dtype, expression.key)
    graph.register_initializer(weight)
    name = f"{norm.name}/smoothed"
    output = ir.val(f"{name}:0")
    copy = ir.node(norm.op_type, [norm.inputs[0], weight], norm.attributes, outputs=[output], name=name)
    graph.insert_after(norm, copy)
    only = [use.node for use in norm.outputs[0].uses()]
    if len(only) == 1 and not norm.outputs[0].is_graph_output():
        ir.convenience.replace_all_uses_with(norm.outputs[0], output)
        graph.remove(norm, safe=True)
        copy.name = norm.name
    return output

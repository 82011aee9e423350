"""Every MatMul of int8 by int8 of a bundle, as ONNX Runtime computes it here, against integers in numpy.

    x -> QuantizeLinear -> DequantizeLinear -> MatMul <- DequantizeLinear(w)        w int8 [k, n], scales [n]

    exact : (round(x / s) int8 @ w) int32, then times s * scales in float32

The graph runs once on ids, with each MatMul's own input and output among its outputs, in a session with the
configuration that the runtime chooses. So no error is carried from one MatMul to the next, and what is left is the
rounding of two float32 multiplications. A sum that saturates is off by whole steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx_ir as ir

from t5edge.bundle.manifest import Manifest
from t5edge.bundle.parity_report import CheckResult, at_most, not_applicable
from t5edge.progress import Silent
from t5edge.runtime.backend import find_backend
from t5edge.runtime.onnxruntime.arithmetic import Arithmetic, open_exact
from t5edge.runtime.onnxruntime.sessions import Entries, session_entries, session_in_memory, session_options

if TYPE_CHECKING:
    from t5edge.exporter.reference.texts import Batch
    from t5edge.parity.subject import Subject

GRAPH = "encoder"
AXES_ARE_INPUTS = 18
"""The opset from which on reductions take their axes so."""
ROUNDINGS = 4.0
"""Two correct results differ by at most so many units in the last place of float32: scale, product, and integers above
2^24, on either side."""
JUDGED_ROWS = 64
"""Rows of an input that judge its scale."""
MOST_EXCESS = 5.0
"""Calibration minds outliers and the weights, and knew other texts: 3.4 was seen. A scale 16 times too large: 8."""
WIDEST = 1.5
"""Times the largest input of the calibration texts that 127 steps may reach: no observer goes beyond it, and what is
rounded in the layers before moves it by a few percent."""
DISTURBED = 0.25
"""Steps by which a float32 sum of the same integers may be off: far below a whole one."""


@dataclass(frozen=True)
class IntegerMatMul:
    """One MatMul on one run.

    Attributes:
        name: the node's.
        steps: largest distance from the exact sum, in integer steps (a product of 1 by 1).
        roundings: largest distance, in units in the last place of the result's float32 (or of one step's).
        relative: norm of the difference by the norm of the exact result.
        excess: error of rounding the input, over the least that any other scale would give.
    """

    name: str
    steps: float
    roundings: float
    relative: float
    excess: float

    @property
    def exact(self) -> bool:
        """Within float32 rounding of the exact integers."""
        return self.roundings <= ROUNDINGS or self.steps <= DISTURBED


class _Site(NamedTuple):
    """The values around one MatMul: ``x`` and ``y`` float32, ``scale`` of x, ``weight`` int8 and its ``scales``."""

    name: str
    x: ir.Value
    y: ir.Value
    scale: np.ndarray
    weight: np.ndarray
    scales: np.ndarray


def integer_matmuls(
    folder: Path,
    input_ids: np.ndarray,
    entries: Entries | None = None,
    attention_mask: np.ndarray | None = None,
    manifest: Manifest | None = None,
) -> tuple[list[IntegerMatMul], Arithmetic | None]:
    """Each quantized MatMul of the encoder on ``input_ids`` int64 [batch, source], and how the session multiplies.

    ``entries``: session configuration; None for the runtime's choice on this CPU. ``attention_mask`` like the ids; None
    for no padding. ``manifest``: the bundle's, where it is not written yet.
    """
    model = ir.load(folder / f"{GRAPH}.onnx")
    sites = list(_sites(model.graph))
    if not sites:
        return [], None
    exposed = _expose(model.graph, sites)
    session, arithmetic = _open(model, folder, entries, manifest)
    mask = np.ones_like(input_ids) if attention_mask is None else attention_mask
    found = dict(zip(exposed, session.run(exposed, {"input_ids": input_ids, "attention_mask": mask}), strict=True))
    return [_compare(site, found, mask.astype(bool)) for site in sites], arithmetic


def ranges(folder: Path, batches: Sequence[Batch], manifest: Manifest | None = None) -> dict[str, float]:
    """What 127 steps of each quantized MatMul's input reach, over the input's largest magnitude in ``batches``."""
    model = ir.load(folder / f"{GRAPH}.onnx")
    sites = list(_sites(model.graph))
    exposed = _expose_largest(model.graph, sites)
    session, _ = _open(model, folder, None, manifest)
    largest = np.zeros(len(sites))
    for batch in batches:
        feeds = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        seen = batch.attention_mask.astype(bool)
        largest = np.maximum(largest, [array[seen].max() for array in session.run(exposed, feeds)])
    reached = 127 * np.array([float(site.scale) for site in sites]) / np.where(largest == 0, np.inf, largest)
    return dict(zip((site.name for site in sites), reached.tolist(), strict=True))


def _open(
    model: ir.Model, folder: Path, entries: Entries | None, manifest: Manifest | None
) -> tuple[Any, Arithmetic | None]:
    data = ir.to_proto(model).SerializeToString()

    def start(chosen: Mapping[str, str]) -> Any:
        return session_in_memory(data, folder, session_options(entries=chosen))

    if entries is not None:
        return start(entries), None
    bundle = manifest or Manifest.read(folder)
    return open_exact(session_entries(bundle, GRAPH), start, bundle.sums_fit)


def _sites(graph: ir.Graph) -> Iterator[_Site]:
    for node in graph:
        if node.op_type != "MatMul":
            continue
        rounded, weight = (None if value is None else value.producer() for value in node.inputs)
        if rounded is None or weight is None or {rounded.op_type, weight.op_type} != {"DequantizeLinear"}:
            continue
        quantized = rounded.inputs[0].producer() if rounded.inputs[0] is not None else None
        assert quantized is not None
        x = quantized.inputs[0]
        assert x is not None
        constants = [_array(value) for value in (rounded.inputs[1], *weight.inputs[:2])]
        yield _Site(node.name or "", x, node.outputs[0], *constants)


def _array(value: ir.Value | None) -> np.ndarray:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def _expose(graph: ir.Graph, sites: list[_Site]) -> list[str]:
    """Make the inputs and outputs of the MatMuls the outputs of the graph; returns their names."""
    graph.outputs.clear()
    for site in sites:
        for value in (site.x, site.y):
            if value not in graph.outputs:
                value.type = ir.TensorType(ir.DataType.FLOAT)
                graph.outputs.append(value)
    return [str(value.name) for value in graph.outputs]


def _expose_largest(graph: ir.Graph, sites: list[_Site]) -> list[str]:
    """Make the largest magnitude of each position of the MatMuls' inputs the outputs, [batch, source]; their names."""
    graph.outputs.clear()
    axes = ir.tensor(np.array([-1]), name="largest/axes")
    last = ir.Value(name=axes.name, type=ir.TensorType(axes.dtype), shape=ir.Shape([1]), const_value=axes)
    if graph.opset_imports[""] >= AXES_ARE_INPUTS:
        graph.register_initializer(last)
        axis: tuple[list[ir.Value], dict[str, Any]] = [last], {}
    else:
        axis = [], {"axes": [-1]}
    for place, site in enumerate(sites):
        magnitude = ir.node("Abs", [site.x])
        magnitude.outputs[0].name = f"largest/magnitude/{place}"
        node = ir.node("ReduceMax", [magnitude.outputs[0], *axis[0]], {"keepdims": 0, **axis[1]})
        node.outputs[0].name = f"largest/{place}"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        graph.extend([magnitude, node])
        graph.outputs.append(node.outputs[0])
    return [str(value.name) for value in graph.outputs]


def _compare(site: _Site, found: Mapping[str, np.ndarray], seen: np.ndarray) -> IntegerMatMul:
    """``seen`` bool [batch, source]: where text is."""
    x, y = (found[str(value.name)][seen] for value in (site.x, site.y))
    integers = np.clip(np.rint(x / site.scale), -128, 127)
    # Sums of integers below 2^53 are exact in float64, and quick.
    sums = integers.astype(np.float64) @ site.weight.astype(np.float64)
    step = site.scale * site.scales
    exact = sums.astype(np.float32) * step
    off = np.abs(y.astype(np.float64) - exact)
    return IntegerMatMul(
        site.name,
        float((off / step).max()),
        float((off / np.spacing(np.maximum(np.abs(exact), step))).max()),
        float(np.linalg.norm(off) / np.linalg.norm(exact)),
        _excess(x[:: max(1, len(x) // JUDGED_ROWS)], float(site.scale)),
    )


def _excess(x: np.ndarray, scale: float) -> float:
    """Rounding error of ``x`` [rows, k] at ``scale`` over the least at scales up to 8 times as large or small."""

    def error(step: float) -> float:
        return float(np.linalg.norm(np.clip(np.rint(x / step), -128, 127) * step - x))

    least = min(error(scale * 2.0 ** (half / 2)) for half in range(-6, 7))
    return error(scale) / least if least else 1.0


def arithmetic(subject: Subject, name: str) -> Iterator[CheckResult]:
    """The check ``arithmetic``: integers multiplied exactly as the runtime does it here, and input scales that fit."""
    opener = subject.opener
    if GRAPH not in opener.precision.activations or opener.precision.compute != "float":
        yield not_applicable(name, "nothing is multiplied in integers")
        return
    if find_backend(opener.target).needs_gpu:
        yield not_applicable(name, f"how {opener.target} multiplies integers is not visible; its logits are judged")
        return
    texts = subject.workload.texts
    found, _ = integer_matmuls(
        opener.folder, texts.input_ids, attention_mask=texts.attention_mask, manifest=opener.manifest
    )
    if not found:
        yield not_applicable(name, "no activation is rounded to integers: all were left in float32")
        return
    wrong = [one.name for one in found if not one.exact]
    yield at_most(name, f"inexact products of {len(found)}", len(wrong), 0, wrong=wrong)
    worst = max(found, key=lambda one: one.excess)
    yield at_most(name, "rounding of an input over the least possible", worst.excess, MOST_EXCESS, worst=worst.name)
    yield _ranges_fit(subject, name)


def _ranges_fit(subject: Subject, name: str) -> CheckResult:
    """No scale is wider than the texts need that it was calibrated on."""
    batches = _calibrated_on(subject)
    if not batches:
        return not_applicable(name, "the calibration texts are neither the checkpoint's nor the bundled ones")
    reached = ranges(subject.opener.folder, batches, subject.opener.manifest)
    site = max(reached, key=lambda site: reached[site])
    what = "range of an input over its largest value in the calibration texts"
    return at_most(name, what, reached[site], WIDEST, worst=site)


def _calibrated_on(subject: Subject) -> Sequence[Batch]:
    """The batches that chose the scales; none where those texts were the user's, who names them at the export alone."""
    from t5edge.calibration.texts import read_texts

    opener = subject.opener
    texts = read_texts(subject.checkpoint, None, opener.limits, Silent())
    known = (opener.manifest.quantization or {}).get("text_keys", ())
    return texts.batches if set(texts.keys) == set(known) else ()

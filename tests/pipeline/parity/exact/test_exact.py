"""Weights and graphs are judged apart from rounding: in every precision a wrong one is as plain as in float32."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from safetensors import safe_open

from support.exports import GATED, RELU, Exports, fix_hashes
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.parity_report import FAIL, ParityReport
from t5edge.bundle.ports import GraphName
from t5edge.parity.exact.stored import StoredWeights, channel_factors, half_ulp
from t5edge.parity.exact.weights import check_weights
from t5edge.parity.subject import Opener

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int8-weight", "int4-weight")


def failed(report: ParityReport) -> dict[str, list[str]]:
    """Measures that failed by the check's name, without the parts of layers that are then named."""
    found: dict[str, list[str]] = {}
    for result in report.results:
        if result.verdict == FAIL and "block" not in result.name:
            found.setdefault(result.name, []).append(result.measure)
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tiny", [GATED, pytest.param(RELU, marks=pytest.mark.slow)])
def test_the_weights_of_every_precision_are_the_checkpoints_to_half_a_step(
    exports: Exports, tiny: str, precision: str
) -> None:
    folder = exports.bundle(tiny, precision)
    stored = StoredWeights(folder, exports.checkpoint(tiny))
    results = list(check_weights(Opener(folder, Manifest.read(folder), "onnxruntime"), "weights", stored))
    assert [result.verdict for result in results] == ["pass"] * len(results), results
    names = {found.name for matrix, key in stored.matrices() for found in stored.recover(matrix, key)}
    assert names == set(exports.checkpoint(tiny).names())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4-weight"])
def test_every_graph_of_every_precision_is_exact_apart_from_rounding(exports: Exports, precision: str) -> None:
    report = exports.verify(exports.bundle(GATED, precision), GATED, "graphs", "arithmetic")
    assert not failed(report), report.failures
    measures = {result.measure for result in report.results}
    forms = [name for name in Manifest.read(exports.bundle(GATED, precision)).ports if name != "encoder"]
    for form in forms:
        assert f"relative error, logits, {form}, 320 positions in steps" in measures
        assert f"relative error, logits, {form}, 3 beams" in measures


def swap_rows(array: np.ndarray) -> None:
    array[[0, 1]] = array[[1, 0]]


@pytest.mark.parametrize(
    ("precision", "tensor"),
    [
        ("fp32", "decoder.block.1.layer.0.layer_norm.weight"),
        ("fp16", "T(decoder.block.1.layer.2.DenseReluDense.wo.weight"),
        ("int8", "int8.values(T(encoder.block.0.layer.0.SelfAttention.q.weight"),
        ("int4-weight", "int4x"),
        ("int8", "int8.scales(T(decoder.block.0.layer.0.SelfAttention.q.weight"),
        ("fp16", "distance(decoder"),
    ],
)
def test_two_numbers_that_change_places_are_found(
    exports: Exports, tmp_path: Path, precision: str, tensor: str
) -> None:
    with safe_open(exports.bundle(GATED, precision) / "weights.safetensors", framework="np") as file:
        name = next(name for name in file.keys() if name.startswith(tensor))  # noqa: SIM118 - no mapping
    folder = exports.spoilt(GATED, precision, tmp_path / "bundle", name, swap_rows)
    assert "weights" in failed(exports.verify(folder, GATED, "weights"))


def add_beyond(array: np.ndarray) -> None:
    """Two neighbours in one column whose sum leaves 16 bits."""
    array[:2, 0] = 127


def test_neighbours_that_may_saturate_are_found(exports: Exports, tmp_path: Path) -> None:
    name = "int8.values(T(encoder.block.0.layer.0.SelfAttention.q.weight"
    with safe_open(exports.bundle(GATED, "int8") / "weights.safetensors", framework="np") as file:
        stored = next(key for key in file.keys() if key.startswith(name))  # noqa: SIM118 - no mapping
    folder = exports.spoilt(GATED, "int8", tmp_path / "bundle", stored, add_beyond)
    found = failed(exports.verify(folder, GATED, "weights"))["weights"]
    assert any("sums beyond 16 bits" in measure for measure in found)


def with_graph(
    exports: Exports, precision: str, folder: Path, graph: GraphName, change: Callable[[ir.Graph], None]
) -> Path:
    """A copy whose graph is changed, hashes fixed."""
    shutil.copytree(exports.bundle(GATED, precision), folder)
    model = ir.load(folder / f"{graph}.onnx")
    change(model.graph)
    ir.save(model, folder / f"{graph}.onnx")
    fix_hashes(folder)
    return folder


def swap_gates(graph: ir.Graph) -> None:
    """The two halves behind a packed wi change places: gelu(wi_1) * wi_0."""
    split = next(node for node in graph if node.op_type == "Split" and len(node.outputs) == 2)
    first, second = ([(use.node, use.idx) for use in list(output.uses())] for output in split.outputs)
    for uses, other in ((first, split.outputs[1]), (second, split.outputs[0])):
        for node, index in uses:
            node.replace_input_with(index, other)


def shift_past(graph: ir.Graph) -> None:
    """Positions count one further than they are."""
    past = next(port for port in graph.inputs if port.name == "past_length")
    one = ir.val("one_more", const_value=ir.tensor(np.array([1], np.int64), name="one_more"))
    graph.register_initializer(one)
    tape = ir.tape.Tape()
    users = [(use.node, use.idx) for use in list(past.uses()) if use.node.op_type in ("Sub", "Unsqueeze")]
    shifted = tape.op("Add", [past, one])
    shifted.name = "shifted"
    graph.insert_before(graph[0], tape.nodes)
    for node, index in users:
        node.replace_input_with(index, shifted)


@pytest.mark.parametrize(
    ("precision", "graph", "change"),
    [
        ("int4-weight", "decoder", swap_gates),
        pytest.param("fp16", "decoder", swap_gates, marks=pytest.mark.slow),
        pytest.param("int8", "encoder", swap_gates, marks=pytest.mark.slow),
        ("int8", "decoder_buffered", shift_past),
    ],
)
def test_a_wrong_graph_is_found_in_every_precision_and_form(
    exports: Exports, tmp_path: Path, precision: str, graph: GraphName, change: Callable[[ir.Graph], None]
) -> None:
    folder = with_graph(exports, precision, tmp_path / "bundle", graph, change)
    found = failed(exports.verify(folder, GATED, "weights", "graphs"))
    assert set(found) == {"graphs"}
    wrong = [measure for measure in found["graphs"] if graph in measure]
    assert wrong if graph != "encoder" else any("encoder output" in measure for measure in found["graphs"])


def test_a_weight_that_is_read_from_anothers_place_is_found(exports: Exports, tmp_path: Path) -> None:
    def change(graph: ir.Graph) -> None:
        stored = [value for value in graph.initializers.values() if isinstance(value.const_value, ir.ExternalTensor)]
        norms = [value for value in stored if (value.name or "").endswith("layer_norm.weight")]
        norms[0].const_value, norms[1].const_value = norms[1].const_value, norms[0].const_value

    folder = with_graph(exports, "int8", tmp_path / "bundle", "decoder", change)
    found = failed(exports.verify(folder, GATED, "weights", "graphs"))
    assert set(found) == {"weights", "graphs"}


def test_a_fixed_capacity_runs_up_to_its_end(exports: Exports, tmp_path: Path) -> None:
    options = {"cache": "in-place", "max_target_length": 40, "no_verify": True}
    folder = exports.export(str(exports.root / GATED), "fp16", tmp_path / "bundle", **options)
    report = exports.verify(folder, GATED, "graphs")
    assert not failed(report)
    measures = [result.measure for result in report.results]
    assert "relative error, logits, decoder_in_place, 320 positions in steps (first 40)" in measures


def test_channel_factors_are_found_through_rounding() -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    base = torch.randn(40, 60, generator=generator)
    rows = torch.exp2(torch.randint(-6, 7, (40, 1), generator=generator).float())
    columns = torch.exp2(torch.randint(-3, 4, (1, 60), generator=generator).float())
    columns[:, :30] = 1
    exact = base * rows * columns
    step = exact.abs().amax(dim=0, keepdim=True) / 127
    found = channel_factors((exact / step).round() * step, base)
    kept = (exact / step).round().abs().amax(dim=1) > 3
    assert torch.equal(found[kept], (rows * columns)[kept])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_half_an_ulp_is_half_the_distance_to_the_next_number(dtype: str) -> None:
    import torch

    kind = getattr(torch, dtype)
    numbers = torch.tensor([1.0, 1.5, -3.0, 1000.0, 0.0009765625], dtype=kind)
    further = torch.nextafter(numbers, numbers.sign() * torch.full_like(numbers, float("inf")))
    assert torch.equal(half_ulp(numbers), (further.float() - numbers.float()).abs() / 2)

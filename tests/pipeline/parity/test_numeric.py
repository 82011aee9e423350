"""Each check passes on a good bundle and fails on the error it is there for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from support.exports import GATED, RELU, Exports, Spoil, fix_hashes
from t5edge.bundle.parity_report import ParityReport
from t5edge.parity.ladder import CHECKS


def failed(report: ParityReport) -> set[str]:
    """The checks that failed."""
    return {check.name for check in CHECKS if report.verdicts().get(check.name) == "fail"}


def wrong_parts(report: ParityReport) -> set[tuple[str, str]]:
    """The parts of layers that are named."""
    names = {check.name for check in CHECKS}
    return {(found.name, found.measure.partition(", ")[2]) for found in report.failures if found.name not in names}


def swap_halves(array: np.ndarray) -> None:
    array[...] = np.roll(array.copy(), array.shape[1] // 2, axis=1)


def mistaken_transpose(array: np.ndarray) -> None:
    array[...] = array.T.copy().reshape(array.shape)


def scale(factor: float) -> Spoil:
    def spoil(array: np.ndarray) -> None:
        array *= factor

    return spoil


def put_nan(array: np.ndarray) -> None:
    array.reshape(-1)[3] = np.nan


def farthest(array: np.ndarray) -> None:
    """The bias of distance -128, which no shorter input has."""
    array[:, 0] += 0.5


def far_off(array: np.ndarray) -> None:
    """The same by much."""
    array[:, 0] += 4.0


ENCODER_BIAS = "distance(encoder.block.0"
DECODER_BIAS = "distance(decoder.block.0"


@pytest.mark.parametrize(
    ("tensor", "spoil", "caught", "spared", "part"),
    [
        (
            "encoder.block.1.layer.1.DenseReluDense.wi_0",
            swap_halves,
            {"2 encoder", "3 logits"},
            {"4 cache"},
            "encoder block 1",
        ),
        (
            "lm_head",
            mistaken_transpose,
            {"3 logits", "7 generation"},
            {"2 encoder", "4 cache", "5 padding"},
            "decoder head",
        ),
        ("lm_head", scale(1.001), {"3 logits"}, {"2 encoder", "4 cache", "7 generation"}, "decoder head"),
        ("decoder.final_layer_norm", put_nan, {"3 logits", "4 cache", "7 generation"}, {"2 encoder"}, "decoder head"),
        (ENCODER_BIAS, farthest, {"6 lengths"}, {"2 encoder", "3 logits", "4 cache", "7 generation"}, "encoder stem"),
        (DECODER_BIAS, farthest, {"6 lengths"}, {"2 encoder", "3 logits", "4 cache", "7 generation"}, "decoder stem"),
    ],
)
def test_a_wrong_weight_is_caught_by_its_checks(
    exports: Exports, tmp_path: Path, tensor: str, spoil: Spoil, caught: set[str], spared: set[str], part: str
) -> None:
    folder = exports.spoilt(GATED, "fp32", tmp_path / "bundle", tensor, spoil)
    report = exports.verify(folder, GATED, "2", "3 logits", "4", "5", "6", "7")
    assert not report.passed
    assert caught <= failed(report)
    assert not spared & failed(report)
    assert {name for name, _ in wrong_parts(report)} == {part}


def test_a_wrong_logit_scale_hides_from_top1_and_tokens_but_not_from_the_rest(exports: Exports, tmp_path: Path) -> None:
    folder = exports.spoilt(GATED, "fp16", tmp_path / "bundle", "lm_head", scale(1.25))
    report = exports.verify(folder, GATED, "3 logits", "7")
    verdicts = {result.measure.partition(",")[0]: result.verdict for result in report.results}
    assert verdicts["top-1 agreement"] == verdicts["greedy tokens equal"] == "pass"
    assert verdicts["mean KL (nats)"] == verdicts["relative error"] == verdicts["log-probability error"] == "fail"


@pytest.mark.parametrize(
    ("tensor", "spoil", "caught"),
    [
        ("decoder.final_layer_norm", scale(1.25), "3 logits"),
        (ENCODER_BIAS, far_off, "6 lengths"),
        (DECODER_BIAS, far_off, "6 lengths"),
    ],
)
def test_a_quantized_bundle_is_not_let_off(
    exports: Exports, tmp_path: Path, tensor: str, spoil: Spoil, caught: str
) -> None:
    folder = exports.spoilt(GATED, "int8-weight", tmp_path / "bundle", tensor, spoil)
    assert caught in failed(exports.verify(folder, GATED, "3 logits", "6"))


def edit_graph(exports: Exports, out: Path, name: str, edit: Callable[[onnx.GraphProto], None]) -> Path:
    """A copy of the gated bundle with one graph changed."""
    import shutil

    folder = Path(shutil.copytree(exports.bundle(GATED), out))
    path = folder / f"{name}.onnx"
    model = onnx.load(path, load_external_data=False)
    edit(model.graph)
    path.write_bytes(model.SerializeToString())
    fix_hashes(folder)
    return folder


def show_padding(graph: onnx.GraphProto) -> None:
    """The mask of a hidden key becomes 0."""
    (masked,) = (value for value in graph.initializer if "-3.4" in value.name and "distance" not in value.name)
    masked.CopyFrom(onnx.numpy_helper.from_array(np.zeros((), np.float32), masked.name))


def new_before_old(graph: onnx.GraphProto) -> None:
    """One layer's keys and values are appended in front of the past."""
    for node in graph.node:
        if node.op_type == "Concat" and node.input[0].startswith("past_key_values.1.decoder"):
            node.input[0], node.input[1] = node.input[1], node.input[0]


def test_padding_that_shows_through_is_caught(exports: Exports, tmp_path: Path) -> None:
    folder = edit_graph(exports, tmp_path / "bundle", "encoder", show_padding)
    report = exports.verify(folder, GATED, "5", "6")
    assert failed(report) == {"5 padding"}
    assert wrong_parts(report) == {("encoder stem", "mask of bias 0")}


def test_a_cache_in_the_wrong_order_is_caught(exports: Exports, tmp_path: Path) -> None:
    folder = edit_graph(exports, tmp_path / "bundle", "decoder", new_before_old)
    report = exports.verify(folder, GATED, "2", "3 logits", "4", "5")
    assert failed(report) == {"3 logits", "4 cache"}


PRECISIONS = ("fp32", "fp16", "bf16", "int8-weight")
GOOD = [
    *((GATED, name) for name in PRECISIONS),
    *(
        pytest.param(RELU, name, marks=[pytest.mark.slow] if name in ("bf16", "fp16", "int8-weight") else [])
        for name in PRECISIONS
    ),
]


@pytest.mark.parametrize(("tiny", "precision"), GOOD)
def test_a_good_bundle_passes_every_check(exports: Exports, tmp_path: Path, tiny: str, precision: str) -> None:
    report = exports.report(tiny, precision)
    assert report.passed, [result.describe() for result in report.failures]
    idle = {name for name, verdict in report.verdicts().items() if verdict.startswith("not applicable")}
    assert idle == {"8 task"} | (set() if precision == "fp16" else {"3 range"}) | (
        set() if precision == "int8" else {"arithmetic"}
    )


@pytest.mark.parametrize(
    ("tiny", "precision"), [(GATED, "fp16"), pytest.param(RELU, "int8-weight", marks=pytest.mark.slow)]
)
def test_one_block_at_a_time_the_same_checks_hold_the_same_limits(exports: Exports, tiny: str, precision: str) -> None:
    """Only what needs PyTorch token by token is missing; what is compared part by part comes on top."""
    names = {check.name for check in CHECKS}
    reports = (exports.report(tiny, precision), exports.verify(exports.bundle(tiny, precision), tiny, blockwise=True))
    whole, streamed = ({(found.name, found.measure): found for found in report.results} for report in reports)
    missing = {(name, what[:6]) for name, what in whole if (name, what) not in streamed and name != "graphs"}
    assert missing == {("7 generation", "beam-4")}
    assert ("graphs", "-") in streamed
    assert ("7 generation", "-") in streamed
    assert {name for name, _ in streamed} - names >= {"encoder block 0", "decoder block 1", "decoder head"}
    for key, found in whole.items():
        if key in streamed:
            assert streamed[key].verdict == found.verdict
        if key in streamed and found.limit is not None:
            assert streamed[key].limit == pytest.approx(found.limit, rel=0.2), key


def test_one_block_at_a_time_a_wrong_weight_is_caught_and_named(exports: Exports, tmp_path: Path) -> None:
    folder = exports.spoilt(GATED, "fp32", tmp_path / "bundle", "lm_head", mistaken_transpose)
    report = exports.verify(folder, GATED, "2", "3 logits", "7", blockwise=True)
    assert failed(report) == {"3 logits", "7 generation"}
    assert wrong_parts(report) == {("decoder head", "logits")}

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file

from support.bundles import Workshop
from t5edge import cli
from t5edge.errors import UserError
from t5edge.exporter.graph import write
from t5edge.exporter.graph.write import attach, check_room, plan_weights, write_weights
from t5edge.kernels.weights import Source, StackedWeight, planned_value, stack_of

FLOAT, HALF, BRAIN = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
CHECKPOINT = {
    "q": torch.arange(12.0).reshape(3, 4),
    "k": -torch.arange(12.0).reshape(3, 4),
    "norm": torch.linspace(0.5, 2, 5),
    "bias": torch.arange(6.0).reshape(3, 2),
}
QK = stack_of("q", (3, 4)).join(stack_of("k", (3, 4))).transpose()


def model(*values: ir.Value) -> ir.Model:
    graph = ir.Graph([], [], nodes=[], initializers=list(values), opset_imports={"": 23})
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("dtype", [FLOAT, HALF, BRAIN])
def test_one_file_is_safetensors_and_external_data(tmp_path: Path, dtype: ir.DataType) -> None:
    values = [planned_value(QK, dtype, "qk"), planned_value(stack_of("norm", (5,)), dtype, "norm")]
    first, second = model(values[0], values[1]), model(planned_value(QK, dtype, "again"))
    plan = plan_weights([first, second])
    assert len(plan.tensors) == 2  # the second model's tensor is the first one's
    write_weights(plan, CHECKPOINT.__getitem__, tmp_path)
    assert (tmp_path / "weights.safetensors").stat().st_size == plan.size
    stored = load_file(tmp_path / "weights.safetensors")
    assert set(stored) == {"T(q+k)", "norm"}
    for checked in (first, second):
        attach(checked, plan, tmp_path)
        for value in checked.graph.initializers.values():
            expected = stored["norm" if value.name == "norm" else "T(q+k)"]
            array = value.const_value.numpy()  # type: ignore[union-attr]
            np.testing.assert_array_equal(array.astype(np.float32), expected.float().numpy())


@pytest.mark.parametrize("dtype", [FLOAT, HALF])
def test_slices_of_rows_are_the_whole(tmp_path: Path, dtype: ir.DataType, monkeypatch: pytest.MonkeyPatch) -> None:
    table, scaled = stack_of("q", (3, 4)), StackedWeight((Source("k", 0.5),), (3,), 4)
    plan = plan_weights([model(*(planned_value(e, dtype, e.key) for e in (QK, table, scaled)))])
    files = []
    for size in (1 << 24, 20):
        monkeypatch.setattr(write, "SLICE_BYTES", size)
        write_weights(plan, CHECKPOINT.__getitem__, tmp_path)
        files.append((tmp_path / "weights.safetensors").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (1e5, HALF, "q holds 100000, beyond the range of float16; export in bf16 or fp32"),
        (float("nan"), FLOAT, "q holds NaN"),
        (float("inf"), BRAIN, "q holds inf"),
    ],
)
def test_values_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, value: float, dtype: ir.DataType, message: str
) -> None:
    spoiled = {**CHECKPOINT, "q": CHECKPOINT["q"].clone()}
    spoiled["q"][1, 2] = value
    plan = plan_weights([model(planned_value(QK, dtype, "qk"))])
    with pytest.raises(UserError, match=message):
        write_weights(plan, spoiled.__getitem__, tmp_path)


def test_scaling_up_past_the_range_is_refused(tmp_path: Path) -> None:
    expression = StackedWeight((Source("q", 2.0**16),), (3,), 4)
    plan = plan_weights([model(planned_value(expression, HALF, "q"))])
    with pytest.raises(UserError, match="beyond the range of float16"):
        write_weights(plan, CHECKPOINT.__getitem__, tmp_path)


def test_a_disk_without_room_is_refused_before_writing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the disk is full: the weights need \d+ MB, \d+ MB are free"):
        check_room(tmp_path, 1 << 60)


@contextmanager
def small_files() -> Iterator[None]:
    """The kernel's own refusal: no file of this process grows beyond 100 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_fills_up_leaves_one_line_and_nothing_half_written(
    demo: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo.blocks()  # traced, and stored for others, before the limit
    out = tmp_path / "bundles" / "demo"
    with small_files():
        code = cli.main(["export", "--variant", "t5-demo", "--no-verify", "--target", "onnxruntime", "--out", str(out)])
    assert code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("t5edge export: writing weights.safetensors failed: File too large; it needs 6 MB.")
    assert list(out.parent.iterdir()) == []

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from support.bundles import Workshop
from support.exports import GATED, Exports
from support.gpus import NO_GPU, SetGpus
from support.host_device import pretend_gpu
from t5edge.bundle.engine_record import EngineRun
from t5edge.bundle.manifest import Manifest, damaged_files
from t5edge.engines import check as tensorrt_check
from t5edge.engines.build import build_engines
from t5edge.engines.check import LIMITS, ROUNDED, RUNG, output_error, require_right, run_state
from t5edge.errors import GateError
from t5edge.runtime.gpu import Gpu, GpuReport
from t5edge.runtime.tensorrt.flavor import FLAVORS, TensorRT

RTX = FLAVORS["tensorrt-rtx"]
ADA = GpuReport((Gpu("NVIDIA Test 4090", "8.9", "13.0"),))


@pytest.fixture
def bundle(shallow: Workshop, tmp_path: Path, rtx: TensorRT) -> Path:
    return shallow.fresh(tmp_path / "bundle", "fp32")


def test_without_the_gpu_it_is_not_run(shallow: Workshop) -> None:
    folder = shallow.bundle("fp16")
    assert run_state(folder, Manifest.read(folder), RTX, "8.6", NO_GPU) == "not run: no GPU: none in this test"
    assert run_state(folder, Manifest.read(folder), RTX, "8.6", ADA) == "not run: no GPU of compute capability 8.6 here"


def test_without_onnxruntime_it_is_not_run(shallow: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    state = run_state(shallow.bundle("fp16"), Manifest.read(shallow.bundle("fp16")), RTX, "8.9", ADA)
    assert isinstance(state, str)
    assert state.startswith("not run: onnxruntime is not installed to compare with")


def test_what_cannot_be_opened_is_not_run(shallow: Workshop, set_gpus: SetGpus, rtx: TensorRT) -> None:
    set_gpus("8.9")
    state = run_state(shallow.bundle("fp16"), Manifest.read(shallow.bundle("fp16")), RTX, "8.9", ADA)
    assert isinstance(state, str)
    assert state.startswith("not run: ")
    assert "no encoder engine of tensorrt-rtx for this GPU" in state


def test_engines_that_agree_pass_with_the_gpu_s_name(
    bundle: Path, rtx: TensorRT, set_gpus: SetGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_gpus("8.9")
    pretend_gpu(monkeypatch, rtx, bundle)
    entries = build_engines(bundle, "tensorrt-rtx")
    run = entries["8.9"].run
    assert isinstance(run, EngineRun)
    (rung,) = run.rungs
    assert (run.gpu, run.verdict) == ("Test GPU 8.9", "pass")
    assert (rung.name, rung.verdict) == (RUNG, "pass")
    assert rung.value is not None
    assert rung.value < 1e-5
    assert Manifest.read(bundle).engines["tensorrt-rtx"]["8.9"].run == run
    assert damaged_files(bundle) == []


@pytest.mark.parametrize(
    ("error", "no_fuse", "advice"),
    [(0.5, False, "build with --no-fuse"), (float("nan"), True, "use --target onnxruntime-cuda")],
)
def test_engines_that_are_wrong_fail_and_are_recorded_so(
    bundle: Path, set_gpus: SetGpus, monkeypatch: pytest.MonkeyPatch, error: float, no_fuse: bool, advice: str
) -> None:
    set_gpus("8.9")
    monkeypatch.setattr(tensorrt_check, "output_error", lambda *_: error)
    with pytest.raises(GateError, match=f"engines run on Test GPU 8.9 and are wrong.*{advice}"):
        build_engines(bundle, "tensorrt-rtx", no_fuse=no_fuse)
    run: Any = Manifest.read(bundle).engines["tensorrt-rtx"]["8.9"].run
    assert run.verdict == run.rungs[0].verdict == "fail"


def test_the_reference_of_quantized_weights_is_what_the_graph_says(exports: Exports) -> None:
    """ONNX Runtime's own kernels round activations by block: they are further away than a right engine."""
    quantized, plain = (exports.bundle(GATED, precision) for precision in ("int8-weight", "fp32"))
    assert LIMITS["float"] < output_error(quantized, Manifest.read(quantized), "onnxruntime") < ROUNDED
    assert output_error(plain, Manifest.read(plain), "onnxruntime") < 1e-6


def test_what_was_not_run_stops_nothing() -> None:
    require_right("not run: no GPU", RTX, no_fuse=False)

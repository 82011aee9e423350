"""An encoder alone on a GPU: its one engine, and ONNX Runtime's providers; on host memory, as the decoder's tests."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.encoders import GATED, PER_LAYER_BIAS, Bundles, example
from support.gpus import SetGpus
from support.host_device import pretend_gpu
from t5edge import pipeline
from t5edge.bundle.engine_record import EngineRun
from t5edge.bundle.manifest import Manifest
from t5edge.cli import main
from t5edge.engines import check as engine_check
from t5edge.engines.build import build_engines
from t5edge.engines.check import ENCODER_RUNG
from t5edge.errors import GateError, UserError
from t5edge.parity.ladder import CHECKS, verify
from t5edge.parity.measures import relative_error
from t5edge.runtime.model import BundleModel, load
from t5edge.runtime.onnxruntime.gpu import open_on_gpu
from t5edge.runtime.tensorrt.flavor import TensorRT

GPU = "8.6"


@pytest.fixture(scope="module")
def built(encoders: Bundles, tmp_path_factory: pytest.TempPathFactory, rtx: TensorRT) -> Path:
    """A float16 bundle with its engine."""
    folder = Path(shutil.copytree(encoders(GATED, "fp16"), tmp_path_factory.mktemp("engine") / "b"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder.parent))
        (entry,) = build_engines(folder, "tensorrt-rtx", [GPU]).values()
    assert list(entry.graphs) == ["encoder"]
    return folder


def test_the_engine_encodes_and_generates_nothing(
    built: Path, rtx: TensorRT, set_gpus: SetGpus, monkeypatch: pytest.MonkeyPatch, caches: Path
) -> None:
    set_gpus(GPU)
    engines = pretend_gpu(monkeypatch, rtx, built)
    model, reference = load(built, target="tensorrt-rtx"), load(built)
    ids, mask = example(model.vocab_size)
    assert relative_error(model.encode_ids(ids, mask)[mask == 1], reference.encode_ids(ids, mask)[mask == 1]) < 1e-6
    assert len(engines) == 1
    assert not engines[0].device.queue
    assert not engines[0].device.blocks, "every buffer is freed"
    assert [path.read_bytes() for path in (caches / "t5edge").iterdir()] == [b"kernels"]
    with pytest.raises(UserError, match=r"is an encoder alone and has no generate\(\)"):
        model.generate(ids, mask)
    with pytest.raises(UserError, match="these engines take up to"):
        model.encode_ids(np.ones((99, 4), np.int64))


def test_texts_go_in_batches_that_the_engine_takes(
    rtx: TensorRT, set_gpus: SetGpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = {"task": "encode", "no_verify": True, "max_batch": 2, "compute_capability": (GPU,)}
    folder = pipeline.export("t5-demo", "fp32", out=tmp_path / "b", target=("tensorrt-rtx",), **options).folder
    set_gpus(GPU)
    pretend_gpu(monkeypatch, rtx, folder)
    texts = ["spell 1984", "a", "add 1 and 2", "spell de 7", "b"]
    found, expected = load(folder, target="tensorrt-rtx").encode(texts), load(folder).encode(texts)
    assert all(relative_error(states, wanted) < 1e-5 for states, wanted in zip(found, expected, strict=True))
    checks = [check for check in CHECKS if check.name in ("2 encoder", "3 texts")]
    assert verify(folder, target="tensorrt-rtx", checks=checks).passed


def test_without_a_gpu_building_works_and_loading_names_the_way_out(
    built: Path, no_gpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="--target onnxruntime runs this bundle on the CPU"):
        load(built, target="tensorrt-rtx")
    assert main(["build", str(built), "--target", "tensorrt-rtx", "--compute-capability", GPU]) == 0
    assert "encoder" in capsys.readouterr().out
    entry = Manifest.read(built).engines["tensorrt-rtx"][GPU]
    assert entry.run == "not run: no GPU: none in this test"


def test_a_built_engine_is_compared_with_onnxruntime(
    encoders: Bundles, rtx: TensorRT, set_gpus: SetGpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(encoders(PER_LAYER_BIAS, "fp32"), tmp_path / "b"))
    set_gpus("8.9")
    pretend_gpu(monkeypatch, rtx, folder)
    run = build_engines(folder, "tensorrt-rtx")["8.9"].run
    assert isinstance(run, EngineRun)
    (rung,) = run.rungs
    assert (run.verdict, rung.name) == ("pass", ENCODER_RUNG)
    assert rung.value is not None
    assert rung.value < 1e-5
    monkeypatch.setattr(engine_check, "_error", lambda *_: 0.5)
    with pytest.raises(GateError, match=r"their outputs differ from ONNX Runtime's by 5\.0e-01"):
        build_engines(folder, "tensorrt-rtx", force=True)


def test_onnxruntime_s_providers_open_the_one_graph(encoders: Bundles) -> None:
    """The provider is the CPU's here; what differs from it on a GPU is the name."""
    import onnxruntime

    folder = encoders(GATED, "fp32")
    opened: list[str] = []

    def start(path: Path) -> Any:
        opened.append(path.name)
        return onnxruntime.InferenceSession(str(path))

    manifest = Manifest.read(folder)
    model = BundleModel(folder, manifest, open_on_gpu(folder, manifest, "CPUExecutionProvider", start))
    ids, mask = example(model.vocab_size)
    assert np.array_equal(model.encode_ids(ids, mask), load(folder).encode_ids(ids, mask))
    assert opened == ["encoder.onnx"]

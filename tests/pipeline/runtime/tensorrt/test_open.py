from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.bundles import Workshop
from support.exports import fix_hashes
from support.gpus import SetGpus
from support.host_device import FakeCache, FakeEngine, HostDevice, pretend_gpu
from t5edge.engines.build import build_engines
from t5edge.errors import UserError
from t5edge.runtime.gpu import find_gpus
from t5edge.runtime.model import load
from t5edge.runtime.tensorrt import open as tensorrt_open
from t5edge.runtime.tensorrt.flavor import FLAVORS, TensorRT


@pytest.fixture(scope="module")
def built(shallow: Workshop, tmp_path_factory: pytest.TempPathFactory, rtx: TensorRT) -> Path:
    """A float32 bundle with engines of both decoder forms for 8.6."""
    folder = shallow.fresh(tmp_path_factory.mktemp("open") / "bundle", "fp32", "both")
    build_engines(folder, "tensorrt-rtx", ["8.6"])
    return folder


def refusal(folder: Path, target: str = "tensorrt-rtx") -> str:
    with pytest.raises(UserError) as caught:
        load(folder, target=target)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_without_a_gpu_the_way_out_is_named(shallow: Workshop, no_gpu: None, target: str) -> None:
    assert refusal(shallow.bundle("fp16"), target) == (
        f"no GPU: none in this test; target {target} runs on an NVIDIA GPU. "
        "--target onnxruntime runs this bundle on the CPU."
    )


def test_a_bundle_without_engines_names_the_command(shallow: Workshop, rtx: TensorRT, set_gpus: SetGpus) -> None:
    set_gpus("8.6")
    folder = shallow.bundle("fp16")
    assert refusal(folder) == (
        f"'{folder}' has no encoder engine of tensorrt-rtx for this GPU, compute capability 8.6. "
        f"Build it here: t5edge build '{folder}' --target tensorrt-rtx"
    )


def test_an_engine_for_another_gpu_is_named(built: Path, set_gpus: SetGpus) -> None:
    set_gpus("8.9")
    assert "for this GPU, compute capability 8.9; there is one for 8.6" in refusal(built)


def test_an_engine_of_another_version_is_refused(
    built: Path, set_gpus: SetGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Newer:
        __version__ = "2.0.0"

    set_gpus("8.6")
    newer = TensorRT(FLAVORS["tensorrt-rtx"], Newer)
    monkeypatch.setattr(tensorrt_open, "load_tensorrt", lambda target: newer)
    assert "was built by tensorrt-rtx 1." in (text := refusal(built))
    assert "here is 2.0.0" in text


def test_an_engine_is_refused_after_its_graph_changed(
    shallow: Workshop, built: Path, set_gpus: SetGpus, tmp_path: Path
) -> None:
    import shutil

    set_gpus("8.6")
    folder = Path(shutil.copytree(built, tmp_path / "bundle"))
    (folder / "encoder.onnx").write_bytes((folder / "decoder.onnx").read_bytes())
    fix_hashes(folder)
    assert "the encoder engine" in (text := refusal(folder))
    assert "was built from another encoder.onnx than the bundle holds now" in text


def test_a_damaged_engine_is_refused(built: Path, set_gpus: SetGpus, tmp_path: Path) -> None:
    import shutil

    set_gpus("8.6")
    folder = Path(shutil.copytree(built, tmp_path / "bundle"))
    engine = folder / "engines" / "tensorrt-rtx" / "8.6" / "encoder.engine"
    data = bytearray(engine.read_bytes())
    data[1000] ^= 1
    engine.write_bytes(data)
    assert "is damaged; build it again: t5edge build" in refusal(folder)


def test_a_machine_without_the_driver_says_so(built: Path, set_gpus: SetGpus) -> None:
    if find_gpus().gpus:
        pytest.skip("this machine has a GPU")
    set_gpus("8.6")
    assert "the GPU cannot be used" in refusal(built)


def test_the_library_s_own_refusal_is_passed_on(
    built: Path, set_gpus: SetGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a pretended GPU and host memory, the real runtime is asked to load the engine and cannot."""
    if find_gpus().gpus:
        pytest.skip("this machine has a GPU")
    set_gpus("8.6")
    monkeypatch.setattr(tensorrt_open, "CudaDevice", HostDevice)
    text = refusal(built)
    assert "cannot load 'engines/tensorrt-rtx/8.6/encoder.engine'" in text
    assert "driver version is insufficient" in text


@pytest.fixture
def on_host(
    built: Path, rtx: TensorRT, set_gpus: SetGpus, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, list[FakeEngine]]:
    """The whole way from ``load`` to a generated text, with ONNX Runtime where the engines would be."""
    set_gpus("8.6")
    return built, pretend_gpu(monkeypatch, rtx, built)


def test_a_loaded_bundle_generates(on_host: tuple[Path, list[FakeEngine]]) -> None:
    folder, _ = on_host
    model = load(folder, target="tensorrt-rtx")
    expected = load(folder).generate_text(["spell 1984"], max_new_tokens=40)
    assert model.generate_text(["spell 1984"], max_new_tokens=40) == expected


def test_the_in_place_decoder_is_preferred(on_host: tuple[Path, list[FakeEngine]]) -> None:
    model = load(on_host[0], target="tensorrt-rtx").step_model
    assert model.in_place
    names = {port.name for port in model.decoder.ports.inputs}
    assert "past_length" in names


def test_rtx_records_its_own_graphs_and_keeps_its_kernels(on_host: tuple[Path, list[FakeEngine]], caches: Path) -> None:
    folder, engines = on_host
    model = load(folder, target="tensorrt-rtx").step_model
    assert model.record is False
    assert [engine.config.cuda_graph_strategy for engine in engines] == ["whole graph"] * 2
    assert not caches.exists()
    model.encode(np.ones((1, 4), np.int64), np.ones((1, 4), np.int64))
    assert [path.read_bytes() for path in (caches / "t5edge").iterdir()] == [b"kernels"] * 2


def test_a_kept_runtime_cache_is_used(on_host: tuple[Path, list[FakeEngine]]) -> None:
    from t5edge.runtime.tensorrt.records import engine_path, read_record, runtime_cache

    folder, engines = on_host
    record = read_record(engine_path(folder, "tensorrt-rtx", "8.6", "encoder"))
    assert record is not None
    tool: Any = tensorrt_open.load_tensorrt("tensorrt-rtx")
    path = runtime_cache(tool, record)
    assert path is not None
    path.parent.mkdir(parents=True)
    path.write_bytes(b"finished kernels")
    load(folder, target="tensorrt-rtx")
    assert engines[0].config.cache.data == b"finished kernels"


def test_a_cache_that_cannot_be_kept_costs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    tensorrt_open.KernelCache(FakeCache(), tmp_path / "file" / "cache").keep()


def test_an_unchanged_cache_is_not_written_again(tmp_path: Path) -> None:
    kernels = tensorrt_open.KernelCache(FakeCache(), tmp_path / "cache")
    kernels.keep()
    (tmp_path / "cache").unlink()
    kernels.keep()
    assert not (tmp_path / "cache").exists()


LOAD = """
import sys
from t5edge.runtime.tensorrt import open as tensorrt_open
from t5edge.errors import UserError
import t5edge
try:
    t5edge.load({folder!r}, target="tensorrt-rtx")
except UserError as error:
    print(error)
print(sorted(name for name in sys.modules if name in {{"torch", "transformers", "onnx", "onnxruntime", "onnx_ir"}}))
"""


def test_loading_imports_nothing_of_the_export(shallow: Workshop, rtx: TensorRT) -> None:
    code = LOAD.format(folder=str(shallow.bundle("fp16")))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"

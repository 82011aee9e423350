from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.bundles import Workshop
from support.gpus import SetGpus
from t5edge.bundle.manifest import Manifest
from t5edge.errors import UserError
from t5edge.runtime.model import BundleModel, load
from t5edge.runtime.onnxruntime import cuda
from t5edge.runtime.onnxruntime.gpu import DeviceModel, open_on_gpu
from t5edge.runtime.onnxruntime.model import OnnxRuntimeModel

TARGETS = ("onnxruntime-cuda", "onnxruntime-rtx")


def start_on_cpu(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def refusal(folder: Path, target: str) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, target=target)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bound_outputs_give_the_same_tokens_and_logits(demo: Workshop) -> None:
    """The device is the CPU here; what differs from it on a GPU is the name."""
    import onnxruntime

    folder = demo.bundle("fp32")
    reference, manifest = load(folder), Manifest.read(folder)
    sessions = [onnxruntime.InferenceSession(str(folder / f"{name}.onnx")) for name in ("encoder", "decoder")]
    ports = manifest.ports["decoder"]
    model = BundleModel(folder, manifest, DeviceModel(sessions[0], sessions[1], ports, "cpu", start_on_cpu))
    ids, mask = reference.tokenizer.encode(["spell 7", "spell 1984"])
    targets = np.random.default_rng(0).integers(3, 180, (2, 10))
    expected = reference.logits(ids, mask, targets)
    assert np.abs(model.logits(ids, mask, targets) - expected).max() < 1e-5 * np.abs(expected).max()
    for beams in (1, 3):
        wanted = reference.generate(ids, mask, num_beams=beams, max_new_tokens=30)
        assert np.array_equal(model.generate(ids, mask, num_beams=beams, max_new_tokens=30), wanted)


def test_the_cpu_model_is_the_base() -> None:
    assert issubclass(DeviceModel, OnnxRuntimeModel)


@pytest.mark.parametrize("target", TARGETS)
def test_without_a_gpu_the_way_out_is_named(demo: Workshop, no_gpu: None, target: str) -> None:
    assert refusal(demo.bundle("fp16"), target) == (
        f"no GPU: none in this test; target {target} runs on an NVIDIA GPU. "
        "--target onnxruntime runs this bundle on the CPU."
    )


def test_plain_onnxruntime_has_no_cuda_provider(demo: Workshop, set_gpus: SetGpus) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    set_gpus("8.9")
    way_out = (
        'has no CUDA provider; pip uninstall onnxruntime onnxruntime-gpu, then pip install "t5edge[onnxruntime-gpu]"'
    )
    assert way_out in refusal(demo.bundle("fp16"), "onnxruntime-cuda")


def test_the_rtx_provider_is_named_when_it_is_missing(
    demo: Workshop, set_gpus: SetGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
    set_gpus("8.9")
    text = refusal(demo.bundle("fp16"), "onnxruntime-rtx")
    assert "pip install onnxruntime onnxruntime-ep-nv-tensorrt-rtx" in text


def test_an_rtx_provider_without_a_device_is_refused(
    demo: Workshop, set_gpus: SetGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider: Any = types.ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
    provider.get_ep_name = lambda: "TestProvider"
    provider.get_library_path = lambda: "/nowhere/libprovider.so"
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", provider)
    registered: list[tuple[str, str]] = []
    monkeypatch.setattr("onnxruntime.register_execution_provider_library", lambda *names: registered.append(names))
    set_gpus("7.5")
    assert "finds no RTX GPU (Ampere or later)" in refusal(demo.bundle("fp16"), "onnxruntime-rtx")
    assert registered == [("TestProvider", "/nowhere/libprovider.so")]


class CpuSession:
    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def test_a_silent_fallback_to_the_cpu_is_refused(demo: Workshop) -> None:
    folder = demo.bundle("fp16")
    with pytest.raises(UserError, match="CUDAExecutionProvider did not start and the CPU would run instead"):
        open_on_gpu(folder, Manifest.read(folder), "CUDAExecutionProvider", lambda path: CpuSession())


def test_a_graph_that_cannot_be_loaded_is_named(demo: Workshop) -> None:
    def fail(path: Path) -> Any:
        raise RuntimeError("bad\nnode")

    folder = demo.bundle("fp16")
    with pytest.raises(UserError, match=r"CUDAExecutionProvider cannot load '.*encoder.onnx': bad node"):
        open_on_gpu(folder, Manifest.read(folder), "CUDAExecutionProvider", fail)


@pytest.mark.parametrize(
    ("form", "settings", "expected"),
    [
        ("standard", {}, [(True, True), (True, False)]),
        ("standard", {"cuda_graphs": False}, [(True, False)]),
        ("standard", {"buffers": False}, [(False, False)]),
        ("portable", {}, [(False, False)]),
    ],
)
def test_only_the_decoder_with_buffers_is_recorded(
    demo: Workshop,
    set_gpus: SetGpus,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    settings: dict[str, bool],
    expected: list[tuple[bool, bool]],
) -> None:
    """A graph that cannot be recorded is opened again, to be run as it is."""
    import onnxruntime

    set_gpus("9.0")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [cuda.PROVIDER])
    tried: list[tuple[bool, bool]] = []

    def refuse(
        folder: Path, manifest: Manifest, provider: str, start: object, *, buffers: bool, record: bool = False
    ) -> None:
        tried.append((buffers, record))
        raise UserError(f"This session {cuda.NOT_RECORDABLE} as requested" if record else "it is over")

    monkeypatch.setattr(cuda, "open_on_gpu", refuse)
    manifest = Manifest.read(demo.bundle("fp16"))
    if form == "portable":
        manifest = replace(manifest, ports={name: manifest.ports[name] for name in ("encoder", "decoder")})
    with pytest.raises(UserError):
        cuda.open(demo.bundle("fp16"), manifest, **settings)
    assert tried == expected

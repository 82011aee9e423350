from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from support.bundles import Workshop
from support.gpus import SetGpus
from support.host_device import HostDevice, pretend_gpu
from t5edge.bundle.manifest import Manifest, damaged_files
from t5edge.engines.build import build_engines
from t5edge.engines.weights import separable_weights
from t5edge.errors import UserError
from t5edge.runtime.model import load
from t5edge.runtime.tensorrt.flavor import TensorRT
from t5edge.runtime.tensorrt.weights import PREFIX, DeviceWeights


def weight(name: str, size: int, offset: int = 64) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT16, dims=[size // 128, 64])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.safetensors"), ("offset", str(offset)), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def save(folder: Path, nodes: list[Any], weights: list[TensorProto]) -> Path:
    graph = helper.make_graph(nodes, "g", [], [], weights)
    onnx.save(helper.make_model(graph), folder / "graph.onnx")
    return folder / "graph.onnx"


def test_matrices_that_are_read_as_they_lie_are_separable(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["both", "ids"], ["a"]),
        helper.make_node("MatMul", ["a", "both"], ["b"]),
        helper.make_node("MatMul", ["b", "small"], ["c"]),
        helper.make_node("Gather", ["tied", "ids"], ["d"]),
        helper.make_node("Gemm", ["d", "tied"], ["e"], transB=1),
        helper.make_node("DequantizeLinear", ["quantized", "scale"], ["f"]),
        helper.make_node("MatMul", ["left", "f"], ["g"]),
    ]
    weights = [weight(name, 8192, 4096) for name in ("both", "tied", "quantized", "left")]
    path = save(tmp_path, nodes, [*weights, weight("small", 4096)])
    assert separable_weights(path) == {"both": (4096, 8192)}


@pytest.fixture
def bundle(demo: Workshop, tmp_path: Path, rtx: TensorRT, set_gpus: SetGpus) -> Path:
    set_gpus()
    return demo.fresh(tmp_path / "bundle", "fp16", "both")


def test_plans_do_not_hold_what_stays_in_the_weights_file(bundle: Path) -> None:
    stored = (bundle / "weights.safetensors").read_bytes()
    whole = build_engines(bundle, "tensorrt-rtx", ["8.6"])["8.6"]
    slim = build_engines(bundle, "tensorrt-rtx", ["8.6"], separate_weights=True)["8.6"]
    for graph in ("encoder", "decoder", "decoder_in_place"):
        places = separable_weights(bundle / f"{graph}.onnx")
        assert slim.graphs[graph].weights == places
        assert len(places) > 10
        plan = (bundle / slim.graphs[graph].file).read_bytes()
        assert not any(stored[offset : offset + 64] in plan for offset, _ in places.values())
        saved = whole.graphs[graph].bytes - slim.graphs[graph].bytes
        assert saved > 0.7 * sum(size for _, size in places.values())  # the program's text grows
        assert slim.graphs[graph].attention == whole.graphs[graph].attention
        assert whole.graphs[graph].weights == {}
    assert damaged_files(bundle) == []


def test_opened_engines_read_the_file_s_own_bytes(
    demo: Workshop, tmp_path: Path, rtx: TensorRT, set_gpus: SetGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_gpus("8.9")
    folder = demo.fresh(tmp_path / "bundle", "fp32")
    pretend_gpu(monkeypatch, rtx, folder)
    build_engines(folder, "tensorrt-rtx", separate_weights=True)
    model, reference = load(folder, target="tensorrt-rtx"), load(folder)
    ids = np.random.default_rng(0).integers(3, model.vocab_size, (2, 7))
    np.testing.assert_allclose(model.logits(ids, None, ids[:, :3]), reference.logits(ids, None, ids[:, :3]), atol=1e-4)
    stored, shared = (folder / "weights.safetensors").read_bytes(), []
    for engine, graph in ((model.step_model.encoder, "encoder"), (model.step_model.decoder, "decoder")):
        places = Manifest.read(folder).engines["tensorrt-rtx"]["8.9"].graphs[graph].weights
        bound = {name: address for name, address in engine.context.addresses.items() if name.startswith(PREFIX)}
        assert list(bound) == [PREFIX + name for name in places]
        for name, (offset, size) in places.items():
            assert ctypes.string_at(bound[PREFIX + name], size) == stored[offset : offset + size]
        shared.append(bound.get(f"{PREFIX}shared.weight"))
    assert shared[0] == shared[1] is not None


@pytest.mark.parametrize(("content", "says"), [(None, "cannot be read"), (b"\x00" * 100, "is shorter than its")])
def test_a_weights_file_that_is_not_whole_is_refused(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"weights.safetensors' {says}.*export the bundle again"):
        DeviceWeights(HostDevice(), path).inputs({"a": (64, 8192)})


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_generation_builds_with_separate_weights(
    demo: Workshop, tmp_path: Path, rtx: TensorRT, precision: str
) -> None:
    folder = demo.fresh(tmp_path / "bundle", precision, "both")
    capabilities = ["8.0", "8.6", "8.9", "12.0", "12.1", *(["7.5"] if precision == "fp16" else [])]
    for entry in build_engines(folder, "tensorrt-rtx", capabilities, separate_weights=True).values():
        assert all(entry.graphs[graph].weights for graph in ("encoder", "decoder", "decoder_in_place"))

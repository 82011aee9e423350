"""A device whose memory is the host's, and an engine that is ONNX Runtime behind raw addresses.

With these the engines' runtime runs for real without a GPU: every address, size, offset, swap and wait of it is checked
by the logits that come out.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t5edge.bundle.dtype import DTYPES
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.ports import GraphPorts
from t5edge.runtime.tensorrt.flavor import TensorRT
from t5edge.runtime.tensorrt.run import BEST_SCORES, BEST_TOKENS, Engine, EngineModel

FORMS = {"concat": "decoder", "in-place": "decoder_in_place"}


class HostDevice:
    """Memory of this process and a stream that runs at ``synchronize``, in order, and not a moment earlier.

    So whatever a GPU may still be doing, this device surely is: host memory is read late, results come late, and memory
    that is freed while queued work needs it fails that work.
    """

    stream = 77

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}
        self.queue: list[Callable[[], None]] = []
        self.copied = self.uploaded = self.downloaded = self.captures = 0

    def allocate(self, size: int) -> int:
        block = ctypes.create_string_buffer(b"\xff" * size, size)  # garbage, as on a GPU: NaN in every float type
        self.blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def free(self, address: int) -> None:
        del self.blocks[address]

    def upload(self, address: int, array: np.ndarray) -> None:
        self.inside(address, array.nbytes)
        self.uploaded += array.nbytes
        self.queue.append(lambda: self.write(address, array))

    def download(self, array: np.ndarray, address: int) -> None:
        self.inside(address, array.nbytes)
        self.downloaded += array.nbytes
        array.reshape(-1).view(np.uint8)[:] = 0xFF
        self.queue.append(lambda: self.read(array, address))

    def copy(self, target: int, source: int, size: int) -> None:
        self.copied += size
        self.queue.append(lambda: self._copy(target, source, size))

    def clear(self, address: int, size: int) -> None:
        self.queue.append(lambda: self.write(address, np.zeros(size, np.uint8)))

    def synchronize(self) -> None:
        queued, self.queue = self.queue, []
        for work in queued:
            work()

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None] | None:
        """A recorded run keeps the addresses and shapes that were bound when it was recorded, as a CUDA graph does."""
        self.captures += 1
        context = enqueue.__self__.context  # type: ignore[attr-defined]
        addresses, shapes = dict(context.addresses), dict(context.shapes)

        def replay() -> None:
            bound = context.addresses, context.shapes
            context.addresses, context.shapes = addresses, shapes
            enqueue()
            context.addresses, context.shapes = bound

        return replay

    def write(self, address: int, array: np.ndarray) -> None:
        """Now, as a part of queued work."""
        data = np.ascontiguousarray(array)
        self.inside(address, data.nbytes)
        ctypes.memmove(address, data.ctypes.data, data.nbytes)

    def read(self, array: np.ndarray, address: int) -> None:
        """Now, as a part of queued work."""
        self.inside(address, array.nbytes)
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def _copy(self, target: int, source: int, size: int) -> None:
        self.inside(target, size)
        self.inside(source, size)
        ctypes.memmove(target, source, size)

    def inside(self, address: int, size: int) -> None:
        fits = any(start <= address and address + size <= start + len(block) for start, block in self.blocks.items())
        assert fits, f"{size} bytes at {address} are outside every allocation"


class HostContext:
    """An execution context over an ONNX file: reads inputs from addresses, writes outputs to addresses."""

    def __init__(self, onnx: Path, ports: GraphPorts, device: HostDevice) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        self.session = onnxruntime.InferenceSession(str(onnx))
        self.ports, self.device = ports, device
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profiles: list[int] = []
        self.runs = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream == self.device.stream
        self.profiles.append(index)
        return True

    def execute_async_v3(self, stream: int) -> bool:
        """Queue a run over the shapes and addresses of this moment."""
        assert stream == self.device.stream
        self.runs += 1
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        self.device.queue.append(lambda: self._run(shapes, addresses))
        return True

    def _run(self, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> None:
        feeds = {port.name: np.empty(shapes[port.name], DTYPES[port.dtype].array) for port in self.ports.inputs}
        for name, array in feeds.items():
            if array.nbytes:
                self.device.read(array, addresses[name])
        names = [output.name for output in self.session.get_outputs()]
        for name, array in zip(names, self.session.run(None, feeds), strict=True):
            self.device.write(addresses[name], array)
            if name == "logits" and BEST_TOKENS in addresses:
                self.device.write(addresses[BEST_TOKENS], array.argmax(axis=-1))
                self.device.write(addresses[BEST_SCORES], array.max(axis=-1))


class FakeCache:
    def __init__(self) -> None:
        self.data = b""

    def deserialize(self, data: bytes) -> bool:
        self.data = data
        return True

    def serialize(self) -> bytes:
        return b"kernels"


class FakeConfig:
    def __init__(self) -> None:
        self.cache, self.cuda_graph_strategy = FakeCache(), "DISABLED"

    def create_runtime_cache(self) -> FakeCache:
        return self.cache

    def set_runtime_cache(self, cache: FakeCache) -> bool:
        return cache is self.cache


class FakeEngine:
    """Makes an ONNX Runtime context of the graph whose engine it is."""

    def __init__(self, folder: Path, device: HostDevice, plan: bytes) -> None:
        self.folder, self.device, self.plan, self.config = folder, device, plan, FakeConfig()

    def create_runtime_config(self) -> FakeConfig:
        return self.config

    def create_execution_context(self, config: Any = None) -> HostContext:
        paths = {path.read_bytes(): path.name.removesuffix(".engine") for path in self.folder.rglob("*.engine")}
        graph = paths[self.plan]
        ports = Manifest.read(self.folder).ports[graph]
        return HostContext(self.folder / f"{graph}.onnx", ports, self.device)


def fake_module(folder: Path, device: HostDevice, version: str, engines: list[FakeEngine]) -> Any:
    class Runtime:
        def __init__(self, log: Any) -> None:
            self.log = log

        def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine:
            engines.append(FakeEngine(folder, device, plan))
            return engines[-1]

    class Module:
        __version__ = version

        class ILogger:
            class Severity:
                ERROR, INTERNAL_ERROR, WARNING = "error", "internal error", "warning"

        class CudaGraphStrategy:
            WHOLE_GRAPH_CAPTURE = "whole graph"

    Module.Runtime = Runtime  # type: ignore[attr-defined]
    return Module


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, rtx: TensorRT, folder: Path) -> list[FakeEngine]:
    """Let ``load`` open the bundle's engines on host memory; returns the engines it makes."""
    device, engines = HostDevice(), list[FakeEngine]()
    tool = TensorRT(rtx.flavor, fake_module(folder, device, rtx.version, engines))
    monkeypatch.setattr("t5edge.runtime.tensorrt.open.load_tensorrt", lambda target: tool)
    monkeypatch.setattr("t5edge.runtime.tensorrt.open.CudaDevice", lambda: device)
    return engines


def open_on_host(folder: Path, form: str, record: bool = True, device: HostDevice | None = None) -> EngineModel:
    """The engines' runtime over ONNX Runtime and host memory."""
    manifest, device = Manifest.read(folder), device or HostDevice()
    engines = []
    for graph in ("encoder", FORMS[form]):
        ports = manifest.ports[graph]
        context = HostContext(folder / f"{graph}.onnx", ports, device)
        engines.append(Engine(context, ports, 1 if graph == "encoder" else 2, device))
    limits = manifest.limits
    return EngineModel(engines[0], engines[1], limits, in_place=form == "in-place", record=record)

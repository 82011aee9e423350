"""The device over CUDA, against a stand-in for the functions of ``cuda.bindings.runtime`` whose memory is the host's.

Nothing here has been run on a GPU: the stand-in shows which functions are called, in which order and with what, and
what a failure of each becomes. That the real functions take these arguments is checked as far as it can be without a
driver: each converts them before it reports that there is none.
"""

from __future__ import annotations

import ctypes
import enum
import gc
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from support.host_device import HostDevice
from t5edge.errors import UserError
from t5edge.runtime.gpu import find_gpus
from t5edge.runtime.tensorrt.device import Buffer, CudaDevice

STREAM = 5


class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorIllegalAddress = 700


class Kind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class Runtime:
    """Every call is written down and succeeds unless ``fails`` names its status."""

    cudaError_t, cudaMemcpyKind = Status, Kind
    cudaStreamCaptureMode = types.SimpleNamespace(cudaStreamCaptureModeRelaxed="relaxed")

    def __init__(self, **fails: Status) -> None:
        self.fails, self.calls, self.blocks = fails, list[tuple[Any, ...]](), dict[int, Any]()

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            status = self.fails.get(name, Status.cudaSuccess)
            done = getattr(self, f"_{name}", None) if status == Status.cudaSuccess else None
            given = done(*arguments) if done else None
            results = (given,) if name in RETURNING else ()
            return (status, *results)

        return call

    @property
    def names(self) -> list[str]:
        return [name for name, *_ in self.calls]

    def _cudaStreamCreate(self) -> int:
        return STREAM

    def _cudaMalloc(self, size: int) -> int:
        block = ctypes.create_string_buffer(size)
        self.blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def _cudaFree(self, address: int) -> None:
        del self.blocks[address]

    def _cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Kind, stream: int) -> None:
        ctypes.memmove(target, source, size)

    def _cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> None:
        ctypes.memset(address, value, size)

    def _cudaStreamEndCapture(self, stream: int) -> str:
        return "graph"

    def _cudaGraphInstantiate(self, graph: str, flags: int) -> str:
        return "ready"

    def cudaGetErrorString(self, status: Status) -> tuple[Status, bytes]:
        return Status.cudaSuccess, f"error {status.value}".encode()


RETURNING = ("cudaStreamCreate", "cudaMalloc", "cudaStreamEndCapture", "cudaGraphInstantiate")


def test_arrays_travel_both_ways_on_the_stream() -> None:
    cuda = Runtime()
    device = CudaDevice(cuda)
    left, right = Buffer(device, 32), Buffer(device, 32)
    sent, received = np.arange(4, dtype=np.int64), np.empty(4, np.int64)
    device.upload(left.address, sent)
    device.copy(right.address, left.address, 32)
    device.download(received, right.address)
    device.synchronize()
    assert np.array_equal(sent, received)
    kinds = (Kind.cudaMemcpyHostToDevice, Kind.cudaMemcpyDeviceToDevice, Kind.cudaMemcpyDeviceToHost)
    assert [call[4:] for call in cuda.calls if call[0] == "cudaMemcpyAsync"] == [(kind, STREAM) for kind in kinds]
    assert cuda.calls[-1] == ("cudaStreamSynchronize", STREAM)


def test_clearing_fills_with_zeros() -> None:
    device, array = CudaDevice(Runtime()), np.ones(2, np.int64)
    buffer = Buffer(device, 16)
    device.clear(buffer.address, 16)
    device.download(array, buffer.address)
    assert array.tolist() == [0, 0]


def test_an_array_lives_until_its_copy_is_done() -> None:
    device = CudaDevice(Runtime())
    buffer, array = Buffer(device, 8), np.zeros(1, np.int64)
    alive = weakref.ref(array)
    device.upload(buffer.address, array)
    del array
    gc.collect()
    assert alive() is not None
    device.synchronize()
    gc.collect()
    assert alive() is None


def test_memory_and_stream_are_freed_with_their_last_reference() -> None:
    cuda = Runtime()
    device = CudaDevice(cuda)
    buffer = Buffer(device, 8)
    assert cuda.blocks
    del buffer
    gc.collect()
    assert cuda.blocks == {}
    del device
    gc.collect()
    assert cuda.calls[-1] == ("cudaStreamDestroy", STREAM)


def test_an_empty_tensor_has_an_address() -> None:
    assert Buffer(CudaDevice(Runtime()), 0).address


def test_a_full_gpu_says_what_to_do() -> None:
    device = CudaDevice(Runtime(cudaMalloc=Status.cudaErrorMemoryAllocation))
    with pytest.raises(UserError, match="the GPU has no 512 MB left; build for a smaller --max-batch"):
        Buffer(device, 512_000_000)


def test_a_driver_that_does_not_serve_the_runtime_says_what_to_do() -> None:
    with pytest.raises(UserError, match=r"the GPU cannot be used: cudaStreamCreate failed: error 35\. .*driver.*older"):
        CudaDevice(Runtime(cudaStreamCreate=Status.cudaErrorInsufficientDriver))


CALLS: dict[str, Callable[[CudaDevice], object]] = {
    "cudaMalloc": lambda device: device.allocate(8),
    "cudaFree": lambda device: device.free(8),
    "cudaMemcpyAsync": lambda device: device.copy(8, 8, 8),
    "cudaMemsetAsync": lambda device: device.clear(8, 8),
    "cudaStreamSynchronize": lambda device: device.synchronize(),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_failure_is_overlooked(name: str) -> None:
    device = CudaDevice(Runtime(**{name: Status.cudaErrorIllegalAddress}))
    with pytest.raises(RuntimeError, match=f"^{name} failed: error 700$"):
        CALLS[name](device)


def test_a_recorded_step_is_launched_and_freed() -> None:
    cuda, queued = Runtime(), list[int]()
    device = CudaDevice(cuda)
    launch = device.capture(lambda: queued.append(1))
    assert launch is not None
    assert queued == [1]
    launch()
    launch()
    del launch
    gc.collect()
    assert cuda.calls[1:] == [
        ("cudaStreamBeginCapture", STREAM, "relaxed"),
        ("cudaStreamEndCapture", STREAM),
        ("cudaGraphInstantiate", "graph", 0),
        ("cudaGraphDestroy", "graph"),
        ("cudaGraphLaunch", "ready", STREAM),
        ("cudaGraphLaunch", "ready", STREAM),
        ("cudaGraphExecDestroy", "ready"),
    ]


def test_a_launch_that_fails_is_no_step() -> None:
    launch = CudaDevice(Runtime(cudaGraphLaunch=Status.cudaErrorIllegalAddress)).capture(lambda: None)
    assert launch is not None
    with pytest.raises(RuntimeError, match="cudaGraphLaunch failed: error 700"):
        launch()


@pytest.mark.parametrize("step", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
@pytest.mark.parametrize("status", [Status.cudaErrorIllegalAddress, Status.cudaErrorMemoryAllocation])
def test_what_cannot_be_recorded_is_run_as_it_is(step: str, status: Status) -> None:
    cuda = Runtime(**{step: status})
    assert CudaDevice(cuda).capture(lambda: None) is None
    assert ("cudaGraphDestroy" in cuda.names) == (step == "cudaGraphInstantiate")


def test_a_failing_step_ends_the_recording() -> None:
    def fail() -> None:
        raise RuntimeError("refused")

    cuda = Runtime()
    with pytest.raises(RuntimeError, match="refused"):
        CudaDevice(cuda).capture(fail)
    assert "cudaStreamEndCapture" in cuda.names


@pytest.fixture
def real_cuda() -> Any:
    """The real module, where no GPU would get made-up addresses."""
    cuda = pytest.importorskip("cuda.bindings.runtime")
    try:
        status, _ = cuda.cudaGetDeviceCount()
    except RuntimeError:
        pytest.skip("this version looks for the driver before it converts its arguments")
    if status == cuda.cudaError_t.cudaSuccess:
        pytest.skip("this machine has a GPU")
    return cuda


@pytest.mark.parametrize("name", CALLS)
def test_the_real_functions_take_these_arguments(real_cuda: Any, name: str) -> None:
    class Opened:
        """The real module, but for a stream that there is not."""

        def __getattr__(self, name: str) -> Any:
            if name in ("cudaStreamCreate", "cudaStreamDestroy"):
                return lambda *_: (real_cuda.cudaError_t.cudaSuccess, STREAM)
            return getattr(real_cuda, name)

    device = CudaDevice(Opened())
    assert device.capture(lambda: None) is None
    with pytest.raises(RuntimeError, match=f"^{name} failed: .*(driver|no CUDA-capable device)"):
        CALLS[name](device)


def test_the_real_functions_of_graphs_take_these_arguments(real_cuda: Any) -> None:
    graph, ready = real_cuda.cudaGraph_t(), real_cuda.cudaGraphExec_t()
    assert len(real_cuda.cudaStreamEndCapture(STREAM)) == 2
    assert len(real_cuda.cudaGraphInstantiate(graph, 0)) == 2
    assert len(real_cuda.cudaGraphLaunch(ready, STREAM)) == 1
    assert len(real_cuda.cudaGraphDestroy(graph)) == len(real_cuda.cudaGraphExecDestroy(ready)) == 1


def test_without_a_driver_the_message_says_what_to_do() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    if find_gpus().gpus:
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match=r"the GPU cannot be used: .*(driver|libcuda).*update it"):
        CudaDevice()


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(UserError, match=r"pip install cuda-bindings$"):
        CudaDevice()


def test_the_test_device_works_when_it_is_waited_for() -> None:
    device = HostDevice()
    buffer, other = Buffer(device, 8), Buffer(device, 8)
    sent, received = np.array([1]), np.empty(1, np.int64)
    device.upload(buffer.address, sent)
    device.copy(other.address, buffer.address, 8)
    device.download(received, other.address)
    sent[0] = 2  # a real copy may be this late
    assert received[0] == -1
    device.synchronize()
    assert received[0] == 2


def test_the_test_device_refuses_to_work_on_freed_memory() -> None:
    device = HostDevice()
    buffer = Buffer(device, 8)
    device.clear(buffer.address, 8)
    del buffer
    gc.collect()
    with pytest.raises(AssertionError, match="outside every allocation"):
        device.synchronize()


def test_the_test_device_refuses_what_is_outside_its_memory() -> None:
    device = HostDevice()
    buffer = Buffer(device, 8)
    with pytest.raises(AssertionError, match="outside every allocation"):
        device.upload(buffer.address + 4, np.zeros(1, np.int64))

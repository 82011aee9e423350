from __future__ import annotations

import ctypes
import gc
from typing import Any

import numpy as np
import pytest

from support.host_device import HostDevice
from t5edge.errors import UserError
from t5edge.runtime.gpu import find_gpus
from t5edge.runtime.tensorrt.device import Buffer, CudaDevice


class FakeRuntime:
    """libcudart by name: every call succeeds and is written down."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.status: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        def call(*_: Any) -> int:
            self.calls.append(name)
            return self.status.get(name, 0)

        return call


class FakeWrapper:
    """polygraphy's wrapper over host memory."""

    def __init__(self, status: int = 0) -> None:
        self.handle, self.blocks, self.destroyed, self.full = FakeRuntime(), dict[int, Any](), list[int](), False

    def create_stream(self) -> int:
        return 5

    def destroy_stream(self, stream: int) -> None:
        self.destroyed.append(stream)

    def stream_synchronize(self, stream: int) -> None:
        assert stream == 5

    def malloc(self, size: int) -> int:
        from polygraphy.exception import PolygraphyException

        if self.full:
            raise PolygraphyException("CUDA Error: 2")
        block = ctypes.create_string_buffer(size)
        self.blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def free(self, address: int) -> None:
        del self.blocks[address]

    def memcpy(self, dst: int, src: int, nbytes: int, kind: Any, stream_ptr: int) -> None:
        assert stream_ptr == 5
        ctypes.memmove(dst, src, nbytes)

    def check(self, status: int) -> None:
        assert status == 0


@pytest.fixture
def wrapper(monkeypatch: pytest.MonkeyPatch) -> FakeWrapper:
    cuda = pytest.importorskip("polygraphy.cuda")
    fake = FakeWrapper()
    monkeypatch.setattr(cuda, "wrapper", lambda: fake)
    return fake


def test_arrays_travel_both_ways(wrapper: FakeWrapper) -> None:
    device = CudaDevice()
    left, right = Buffer(device, 32), Buffer(device, 32)
    sent, received = np.arange(4, dtype=np.int64), np.empty(4, np.int64)
    device.upload(left.address, sent)
    device.copy(right.address, left.address, 32)
    device.download(received, right.address)
    device.synchronize()
    assert np.array_equal(sent, received)


def test_memory_and_stream_are_freed_with_their_last_reference(wrapper: FakeWrapper) -> None:
    device = CudaDevice()
    buffer = Buffer(device, 8)
    assert wrapper.blocks
    del buffer
    gc.collect()
    assert wrapper.blocks == {}
    del device
    gc.collect()
    assert wrapper.destroyed == [5]


def test_an_empty_tensor_has_an_address(wrapper: FakeWrapper) -> None:
    assert Buffer(CudaDevice(), 0).address


def test_a_full_gpu_says_what_to_do(wrapper: FakeWrapper) -> None:
    device = CudaDevice()
    wrapper.full = True
    with pytest.raises(UserError, match="the GPU has no 512 MB left; build for a smaller --max-batch"):
        Buffer(device, 512_000_000)


def test_a_recorded_step_is_launched_and_freed(wrapper: FakeWrapper) -> None:
    device, queued = CudaDevice(), list[int]()
    launch = device.capture(lambda: queued.append(1))
    assert launch is not None
    assert queued == [1]
    launch()
    launch()
    del launch
    gc.collect()
    assert wrapper.handle.calls == [
        "cudaStreamBeginCapture",
        "cudaStreamEndCapture",
        "cudaGraphInstantiate",
        "cudaGraphDestroy",
        "cudaGraphLaunch",
        "cudaGraphLaunch",
        "cudaGraphExecDestroy",
    ]


@pytest.mark.parametrize("step", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_what_cannot_be_recorded_is_run_as_it_is(wrapper: FakeWrapper, step: str) -> None:
    wrapper.handle.status[step] = 900
    assert CudaDevice().capture(lambda: None) is None


def test_a_failing_step_ends_the_recording(wrapper: FakeWrapper) -> None:
    def fail() -> None:
        raise RuntimeError("refused")

    with pytest.raises(RuntimeError, match="refused"):
        CudaDevice().capture(fail)
    assert "cudaStreamEndCapture" in wrapper.handle.calls


def test_clearing_is_queued(wrapper: FakeWrapper) -> None:
    CudaDevice().clear(1, 2)
    assert wrapper.handle.calls == ["cudaMemsetAsync"]


def test_without_the_cuda_runtime_the_message_says_what_to_install() -> None:
    pytest.importorskip("polygraphy")
    if find_gpus().gpus:
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match=r"the CUDA runtime cannot be used .*nvidia-cuda-runtime"):
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

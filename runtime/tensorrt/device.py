"""Device memory and one stream: what running an engine needs of CUDA, as a protocol and on ``cuda-bindings``.

Addresses are plain integers, sizes are bytes. Everything is queued on the one stream, in order.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from t5edge.errors import UserError


class Device(Protocol):
    """Where engines run. The tests have one whose memory is the host's."""

    stream: int

    def allocate(self, size: int) -> int: ...

    def free(self, address: int) -> None: ...

    def upload(self, address: int, array: np.ndarray) -> None:
        """Queue a copy of a contiguous array to the device; the array must not change until ``synchronize``."""
        ...

    def download(self, array: np.ndarray, address: int) -> None:
        """Queue a copy into a contiguous array; it is complete after ``synchronize``."""
        ...

    def copy(self, target: int, source: int, size: int) -> None: ...

    def clear(self, address: int, size: int) -> None:
        """Queue filling with zero bytes."""
        ...

    def synchronize(self) -> None: ...

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None] | None:
        """Record what ``enqueue`` queues; returns how to queue it again, or None when it cannot be recorded."""
        ...


def when_unused(owner: object, action: Callable[..., Any], *arguments: Any) -> None:
    """Call ``action`` once ``owner`` is gone, except at the process's end: the driver may be gone by then."""
    weakref.finalize(owner, action, *arguments).atexit = False


class Buffer:
    """Device memory that is freed with its last reference."""

    def __init__(self, device: Device, size: int) -> None:
        self.size = size
        self.address = device.allocate(max(size, 1))
        when_unused(self, device.free, self.address)


class CudaDevice:
    """The current CUDA device, through the CUDA runtime that ``cuda-bindings`` brings along.

    Copies from and to numpy's memory, which is pageable: CUDA may still read or write it after the call. The arrays are
    kept until ``synchronize``.
    """

    def __init__(self, cuda: Any = None) -> None:
        """``cuda``: the module ``cuda.bindings.runtime``, or what stands in for it.

        Raises:
            UserError: it is not installed, or the device cannot be used.
        """
        self._cuda = cuda or _load_cuda()
        self._in_flight: list[np.ndarray] = []
        try:
            self.stream = int(_call(self._cuda, "cudaStreamCreate"))
        except RuntimeError as error:
            raise UserError(
                f"the GPU cannot be used: {error}. The NVIDIA driver must be as new as cuda-bindings: "
                "update it, or pip install an older cuda-bindings."
            ) from error
        when_unused(self, _call, self._cuda, "cudaStreamDestroy", self.stream)

    def allocate(self, size: int) -> int:
        """Raises ``UserError`` when the GPU's memory is full."""
        return int(_call(self._cuda, "cudaMalloc", size))

    def free(self, address: int) -> None:
        _call(self._cuda, "cudaFree", address)

    def upload(self, address: int, array: np.ndarray) -> None:
        self._copy(address, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")
        self._in_flight.append(array)

    def download(self, array: np.ndarray, address: int) -> None:
        self._copy(array.ctypes.data, address, array.nbytes, "cudaMemcpyDeviceToHost")
        self._in_flight.append(array)

    def copy(self, target: int, source: int, size: int) -> None:
        self._copy(target, source, size, "cudaMemcpyDeviceToDevice")

    def _copy(self, target: int, source: int, size: int, kind: str) -> None:
        direction = getattr(self._cuda.cudaMemcpyKind, kind)
        _call(self._cuda, "cudaMemcpyAsync", target, source, size, direction, self.stream)

    def clear(self, address: int, size: int) -> None:
        _call(self._cuda, "cudaMemsetAsync", address, 0, size, self.stream)

    def synchronize(self) -> None:
        _call(self._cuda, "cudaStreamSynchronize", self.stream)
        self._in_flight.clear()

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None] | None:
        """A CUDA graph of what ``enqueue`` queues. Relaxed: other threads may allocate meanwhile."""
        cuda, stream, success = self._cuda, self.stream, self._cuda.cudaError_t.cudaSuccess
        relaxed = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
        (status,) = cuda.cudaStreamBeginCapture(stream, relaxed)
        if status != success:
            return None
        try:
            enqueue()
        finally:
            status, graph = cuda.cudaStreamEndCapture(stream)
        if status != success:
            return None
        status, ready = cuda.cudaGraphInstantiate(graph, 0)
        _call(cuda, "cudaGraphDestroy", graph)
        if status != success:
            return None

        def launch() -> None:
            _call(cuda, "cudaGraphLaunch", ready, stream)

        when_unused(launch, _call, cuda, "cudaGraphExecDestroy", ready)
        return launch


def _load_cuda() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise UserError(f"the CUDA runtime does not load ({error}); pip install cuda-bindings") from error
    return runtime


def _call(cuda: Any, name: str, *arguments: Any) -> Any:
    """One function of the CUDA runtime; returns its result.

    Raises:
        UserError: the GPU's memory is full.
        RuntimeError: any other failure, in CUDA's words.
    """
    status, *results = getattr(cuda, name)(*arguments)
    if status == cuda.cudaError_t.cudaErrorMemoryAllocation:
        size = f"{arguments[0] / 1e6:.0f} MB" if name == "cudaMalloc" else "memory"
        raise UserError(f"the GPU has no {size} left; build for a smaller --max-batch or --max-target-length.")
    if status != cuda.cudaError_t.cudaSuccess:
        _, text = cuda.cudaGetErrorString(status)
        raise RuntimeError(f"{name} failed: {text.decode()}")
    return results[0] if results else None
